"""Many folders, several at a time: a verdict for each exercise of each, whatever the others do.

    for each folder ──▶ worker (a thread) ──▶ keeper (a process) ──▶ a cell for each exercise     check.py, child.py
                             │
                             └──▶ journal: a line for each folder that is done, so that a later run goes on from there

A file that somebody has handed in already, whatever its comments say, is not judged a second time. If minipage's own
files are found changed, they are put back, whoever was graded meanwhile is graded again, one at a time, and so it is
known who did it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import time
import tokenize
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from stat import S_ISREG

from minipage.learn.check import Keeper, Limits, by_file, check_file, require_hypothesis
from minipage.learn.classroom.folders import Submission, leads_outside
from minipage.learn.course import HERE, Exercise
from minipage.learn.judge import FAILED, PASSED, Verdict
from minipage.learn.load import MOST_BYTES, UNREADABLE, CodeError, read
from minipage.learn.originals import Originals

ALONE = {"exercise.py", "lesson.ipynb", "lesson.py", "__pycache__", ".ipynb_checkpoints"}  # what needs no second look


@dataclass
class Graded:
    """What came of a folder."""

    submission: Submission
    verdicts: list[Verdict] = field(default_factory=list)  # one for each exercise; none if there is no folder
    seconds: float = 0.0
    is_old: bool = False  # from an earlier run

    def points(self, exercises: list[Exercise]) -> int:
        passed = {verdict.number for verdict in self.verdicts if verdict.status == PASSED}
        return sum(exercise.points for exercise in exercises if exercise.number in passed)


class Journal:
    """What an earlier run has found out, and this one does: a JSON line for each folder, by what is in the folder."""

    def __init__(self, path: Path | None, common: str) -> None:
        self.path, self.common = path, common  # `common` stands for all else that the verdicts depend on
        self._lock, self.known = threading.Lock(), dict[str, list[Verdict]]()
        if path is None or not path.exists():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                facts = json.loads(line)
                self.known[facts["key"]] = [Verdict(**verdict) for verdict in facts["verdicts"]]
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the machine was switched off
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n")  # after half a line

    def key(self, submission: Submission, exercises: list[Exercise]) -> str:
        """Empty if it cannot be known whether the folder is as it was."""
        assert submission.folder
        digest = hashlib.sha256(self.common.encode())
        for group in by_file(exercises):
            content = contents(submission.folder / group[0].lesson.name)
            if content is None:
                return ""
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def write(self, key: str, graded: Graded) -> None:
        if self.path is None or not key:
            return
        facts = {"key": key, "learner": graded.submission.learner, "verdicts": [v.as_dict() for v in graded.verdicts]}
        with self._lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def contents(folder: Path) -> bytes | None:
    """What decides about a lesson's folder: its exercise. None if there is more that might, or nothing can be read."""
    try:
        facts = os.lstat(folder / "exercise.py")
        others = {name for name in os.listdir(folder) if not name.endswith(".bak")} - ALONE
        if others or not S_ISREG(facts.st_mode) or facts.st_size > MOST_BYTES:
            return None
        return (folder / "exercise.py").read_bytes()
    except FileNotFoundError:
        return b"" if not os.path.lexists(folder) else None
    except OSError:
        return None


def what_runs(path: Path) -> bytes:
    """The same for files that differ only in comments: their code, and the lines that it is in, are the same."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(read(path)).readline))
    except (CodeError, tokenize.TokenError, *UNREADABLE):  # it will be told by whoever loads it
        return hashlib.sha256(contents(path.parent) or b"").digest()
    said = [(token.string, token.start) for token in tokens if token.type not in (tokenize.COMMENT, tokenize.NL)]
    while said and said[-1][0].strip() == "":  # where the file ends
        said.pop()
    return hashlib.sha256(repr(said).encode("utf-8", "surrogatepass")).digest()


class Grader:
    """Grades folders with `jobs` keepers."""

    def __init__(self, exercises: list[Exercise], limit: float, folder_limit: float, jobs: int) -> None:
        require_hypothesis()
        self.exercises, self.limit, self.folder_limit, self.jobs = exercises, limit, folder_limit, jobs
        self.originals = Originals(HERE.parent)
        self.num_changes = 0  # how often minipage's own files were not what they should be
        self.known: dict[tuple[str, bytes], list[Verdict]] = {}  # (lesson, contents) -> verdicts

    @property
    def common(self) -> str:
        """What verdicts depend on beside the folder: the graders, the exercises asked for, and the limit."""
        digest = hashlib.sha256(
            repr(([each.number for each in self.exercises], self.limit, self.folder_limit)).encode()
        )
        for path in sorted(self.originals.contents):
            digest.update(self.originals.contents[path])
        return digest.hexdigest()

    def grade(
        self, submissions: list[Submission], journal: Journal, on_done: Callable[[Graded], object] = lambda graded: None
    ) -> list[Graded]:
        """In the order of `submissions`. `on_done` is called in this thread, as soon as each is done."""
        results: dict[int, Graded] = {}
        todo: dict[int, str] = {}  # index -> key in the journal
        for i, submission in enumerate(submissions):
            if submission.folder is None:
                results[i] = Graded(submission)
            else:
                key = journal.key(submission, self.exercises)
                if key in journal.known:
                    results[i] = Graded(submission, journal.known[key], is_old=True)
                else:
                    todo[i] = key
        for graded in results.values():
            on_done(graded)
        with ExitStack() as stack:
            idle: SimpleQueue[Keeper] = SimpleQueue()
            for _ in range(min(self.jobs, len(todo))):
                idle.put(stack.enter_context(Keeper()))
            pool = ThreadPoolExecutor(max(1, min(self.jobs, len(todo))))
            try:
                waiting = {pool.submit(self.folder, submissions[i], idle): i for i in todo}
                for done in as_completed(waiting):
                    i, (graded, is_sure) = waiting[done], done.result()
                    if is_sure:
                        results[i] = graded
                        journal.write(todo[i], graded)
                        on_done(graded)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: nobody waits for what has not begun
            for i, submission in enumerate(submissions):  # those that were graded while something was changed
                if i not in results:
                    results[i], is_sure = self.folder(submission, idle, is_alone=True)
                    journal.write(todo[i] if is_sure else "", results[i])
                    on_done(results[i])
        return [results[i] for i in range(len(submissions))]

    def folder(self, submission: Submission, idle: SimpleQueue[Keeper], is_alone: bool = False) -> tuple[Graded, bool]:
        """Everything in one folder; and whether nobody has changed minipage meanwhile."""
        keeper, before, start = idle.get(), self.num_changes, time.monotonic()
        try:
            limits, verdicts = Limits(self.limit), list[Verdict]()
            for group in by_file(self.exercises):
                verdicts += self.file(group, submission, limits, keeper, start + self.folder_limit, is_alone)
        finally:
            idle.put(keeper)
        return Graded(submission, verdicts, time.monotonic() - start), self.num_changes == before

    def file(
        self, group: list[Exercise], submission: Submission, limits: Limits, keeper: Keeper, end: float, is_alone: bool
    ) -> list[Verdict]:
        lesson, folder, before = group[0].lesson, submission.folder, self.num_changes
        assert folder
        if leads_outside(folder, lesson):
            return all_failed(
                group, "exercise.py is a link to somewhere outside of the folder: hand in the file itself."
            )
        content = contents(folder / lesson.name)
        key = lesson.name, what_runs(folder / lesson.name / "exercise.py")
        if content and key in self.known:
            return self.known[key]
        verdicts: list[Verdict] = []
        checks = check_file(group, folder, limits, keeper)
        for exercise in group:
            if time.monotonic() > end:
                message = f"not judged: what came before has used up the time of this folder, {self.folder_limit:g} s."
                verdicts.append(Verdict(exercise.number, FAILED, message))
            else:
                verdicts.append(next(checks))
        if names := self.originals.put_back():
            self.num_changes += 1
            if is_alone:
                return all_failed(group, f"0 points: meanwhile minipage's {names} changed.")
        is_final = not any(verdict.message.startswith(("still running", "not judged")) for verdict in verdicts)
        if content and is_final and self.num_changes == before:
            self.known[key] = verdicts
        return verdicts


def all_failed(group: list[Exercise], message: str) -> list[Verdict]:
    return [Verdict(exercise.number, FAILED, message) for exercise in group]
