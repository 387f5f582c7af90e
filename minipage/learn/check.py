"""Checks exercises in processes of their own, so that nothing a learner's code does can harm or fake anything here.

Each file has a keeper (child.py), which runs each of its exercises in a process by itself. What the keeper says counts;
if somebody kills it, that exercise has failed, and another keeper takes the next one.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from types import TracebackType

from minipage.errors import LearnError
from minipage.learn.child import MARK, PATIENCE, end_family
from minipage.learn.course import HERE, Exercise
from minipage.learn.judge import FAILED, Verdict
from minipage.learn.originals import Originals

LIMIT = 10.0  # seconds for one exercise
SHORT = 0.2  # of the limit: what is left to each when some have used up the patience
MOST_LATE = 3  # exercises of a folder that may use up all their time, before the others get less


def check(exercises: list[Exercise], folder: Path, limit: float = LIMIT) -> Iterator[Verdict]:
    """A verdict for each exercise, in order, as soon as it is known. Raises LearnError if hypothesis is missing."""
    require_hypothesis()
    limits = Limits(limit)
    for group in by_file(exercises):
        yield from check_file(group, folder, limits)


def check_all(
    exercises: list[Exercise], folder: Path, limit: float = LIMIT, advance: Callable[[], None] = lambda: None
) -> list[Verdict]:
    """The same, several files at a time. `advance` is called after each exercise."""
    require_hypothesis()
    limits, originals = Limits(limit), Originals(HERE.parent)

    def whole_file(group: list[Exercise]) -> list[Verdict]:
        verdicts = []
        for verdict in check_file(group, folder, limits):
            if names := originals.put_back():
                verdict = Verdict(verdict.number, FAILED, f"0 points: meanwhile minipage's {names} changed.")
            verdicts.append(verdict)
            advance()
        return verdicts

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return [verdict for verdicts in pool.map(whole_file, by_file(exercises)) for verdict in verdicts]


def by_file(exercises: list[Exercise]) -> list[list[Exercise]]:
    return [list(group) for _, group in groupby(exercises, key=lambda exercise: exercise.lesson)]


class Limits:
    """How long an exercise may take: less, once several of a folder have not come to an end."""

    def __init__(self, limit: float) -> None:
        self.limit, self._num_late, self._lock = limit, 0, threading.Lock()

    def now(self) -> float:
        return self.limit if self._num_late < MOST_LATE else max(1.0, SHORT * self.limit)

    def note(self, verdict: Verdict) -> None:
        with self._lock:
            self._num_late += verdict.message.startswith("still running")


def check_file(group: list[Exercise], folder: Path, limits: Limits) -> Iterator[Verdict]:
    # Links are not followed to their ends: they may have none.
    path = Path(os.path.abspath(folder / group[0].lesson.name / "exercise.py"))
    failures: dict[str, str] = {}  # what was said -> of which exercise
    left = list(group)
    while left:
        with Keeper(path) as keeper:
            while left and keeper.is_alive:
                exercise = left.pop(0)
                verdict = keeper.judged(exercise, limits.now())
                limits.note(verdict)
                yield said_once(verdict, failures)


def said_once(verdict: Verdict, failures: dict[str, str]) -> Verdict:
    """The same mistake may spoil what comes after it, too; then that is said instead of all of it again."""
    if verdict.status != FAILED or not verdict.calls:
        return verdict
    first = failures.setdefault(repr((verdict.calls, verdict.expected, verdict.got, verdict.message)), verdict.number)
    if first == verdict.number:
        return verdict
    message = f"this fails at the same calls as {first}, for the same reason. Mend {first} first."
    return Verdict(verdict.number, FAILED, message, verdict.line)


class Keeper:
    """A process of child.py, for one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.mark = path, secrets.token_hex(16)
        self.scratch = tempfile.TemporaryDirectory(prefix="minipage-", ignore_cleanup_errors=True)
        self.is_alive = True

    def __enter__(self) -> Keeper:
        # -P: nothing is imported from the learner's folder, where a file could have the name of a module of ours.
        command = [sys.executable, "-P", "-m", "minipage.learn.child"]
        place = os.path.realpath(self.scratch.name)
        environment = os.environ | {
            "PYTHONPATH": str(HERE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_ENABLE_CUDASIM": "1",
            "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HYPOTHESIS_STORAGE_DIRECTORY": place,
            "TMPDIR": place, "MPLCONFIGDIR": place, MARK: self.mark,
        }  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment, encoding="utf-8", errors="replace", start_new_session=True, cwd=place,
        )  # fmt: skip
        self._order(path=str(self.path), scratch=place)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        end_family(self.mark)
        self.scratch.cleanup()

    def _order(self, **facts: object) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(facts) + "\n")
            self.process.stdin.flush()
        except OSError:
            self.is_alive = False

    def judged(self, exercise: Exercise, limit: float) -> Verdict:
        assert self.process.stdout
        # The keeper cuts its cells off. This is for one that cannot: it is stopped, or was never right.
        alarm = threading.Timer((PATIENCE + 1) * limit + 30, self.process.kill)
        alarm.start()
        try:
            self._order(number=exercise.number, limit=limit)
            line = self.process.stdout.readline()
        finally:
            alarm.cancel()
        if line:
            return Verdict(**json.loads(line))
        self.is_alive = False
        return Verdict(exercise.number, FAILED, f"the check of {exercise.number} came to no end: {self._what_ended_it()}.")

    def _what_ended_it(self) -> str:
        """It can be our own fault, too: then it has left a last word."""
        assert self.process.stderr
        self.process.kill()
        words = self.process.stderr.read(100_000).strip().splitlines()
        return words[-1].rstrip(".") if words else "it killed the process that judges it"


def require_hypothesis() -> None:
    from importlib.util import find_spec

    if find_spec("hypothesis") is None:
        raise LearnError(
            "checking needs the package hypothesis, which finds the smallest example that fails. "
            "Install it with: pip install hypothesis"
        )
