"""Checks exercises in processes of their own, so that nothing a learner's code does can harm or fake anything here.

A keeper (child.py) runs each exercise in a process by itself. What the keeper says counts; if somebody kills it, that
exercise has failed, and another keeper takes the next one.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from minipage.errors import LearnError
from minipage.learn.child import MARK, PATIENCE, end_family
from minipage.learn.course import HERE, Exercise
from minipage.learn.judge import FAILED, PASSED, Verdict
from minipage.learn.originals import Originals

LIMIT = 10.0  # seconds for one exercise
LEAST = 0.1  # of the limit: what is left to each when many of a folder do not come to an end


def check(exercises: list[Exercise], folder: Path, limit: float = LIMIT) -> Iterator[Verdict]:
    """A verdict for each exercise, in order, as soon as it is known. Raises LearnError if hypothesis is missing."""
    require_hypothesis()
    limits = Limits(limit)
    with Keeper() as keeper:
        for group in by_file(exercises):
            yield from check_file(group, folder, limits, keeper)


def check_all(
    exercises: list[Exercise], folder: Path, limit: float = LIMIT, advance: Callable[[], object] = lambda: None
) -> list[Verdict]:
    """The same, several files at a time. `advance` is called after each exercise."""
    require_hypothesis()
    limits, originals = Limits(limit), Originals(HERE.parent)
    idle: SimpleQueue[Keeper] = SimpleQueue()

    def whole_file(group: list[Exercise]) -> list[Verdict]:
        keeper, verdicts = idle.get(), []
        for verdict in check_file(group, folder, limits, keeper):
            if names := originals.put_back():
                verdict = Verdict(verdict.number, FAILED, f"0 points: meanwhile minipage's {names} changed.")
            verdicts.append(verdict)
            advance()
        idle.put(keeper)
        return verdicts

    num_keepers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(num_keepers) as pool, ExitStack() as stack:
        for _ in range(num_keepers):
            idle.put(stack.enter_context(Keeper()))
        try:
            return [verdict for verdicts in pool.map(whole_file, by_file(exercises)) for verdict in verdicts]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: nobody waits for what has not begun


def by_file(exercises: list[Exercise]) -> list[list[Exercise]]:
    return [list(group) for _, group in groupby(exercises, key=lambda exercise: exercise.lesson)]


class Limits:
    """How long an exercise may take: each that does not end leaves the others of the folder half of it."""

    def __init__(self, limit: float) -> None:
        self.limit, self._num_late, self._lock = limit, 0, threading.Lock()

    def now(self) -> float:
        left: float = self.limit / 2**self._num_late
        return max(left, LEAST * self.limit, min(1.0, self.limit))

    def note(self, verdict: Verdict) -> None:
        with self._lock:
            self._num_late += verdict.message.startswith("still running")


def check_file(group: list[Exercise], folder: Path, limits: Limits, keeper: Keeper) -> Iterator[Verdict]:
    # Links are not followed to their ends: they may have none.
    path = Path(os.path.abspath(folder / group[0].lesson.name / "exercise.py"))
    failures: dict[str, str] = {}  # what was said -> of which exercise
    stuck: Verdict | None = None  # the file itself does not come to an end
    passed: list[str] = []  # the numbers of those that have
    for exercise in group:
        if stuck:
            yield Verdict(exercise.number, FAILED, stuck.message, stuck.line)
            continue
        verdict, is_stuck = keeper.judged(exercise, path, limits.now(), passed)
        passed += [verdict.number] * (verdict.status == PASSED)
        stuck = verdict if is_stuck else None
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
    """A process of child.py, begun when there is something to do, and begun anew if it was killed."""

    def __enter__(self) -> Keeper:
        self.process: subprocess.Popen[str] | None = None
        self.is_closed = False
        self.mark = secrets.token_hex(16)
        self.scratch = tempfile.TemporaryDirectory(prefix="minipage-", ignore_cleanup_errors=True)
        self.place = os.path.realpath(self.scratch.name)
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.is_closed = True
        self._stop()
        self.scratch.cleanup()

    def _begin(self) -> subprocess.Popen[str]:
        # -P: nothing is imported from the learner's folder, where a file could have the name of a module of ours.
        command = [sys.executable, "-P", "-m", "minipage.learn.child"]
        environment = os.environ | {
            "PYTHONPATH": str(HERE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_ENABLE_CUDASIM": "1",
            "OPENBLAS_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1", "OMP_NUM_THREADS": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": self.place, "NUMBA_CACHE_DIR": self.place,
            "TMPDIR": self.place, "MPLCONFIGDIR": self.place, MARK: self.mark,
        }  # fmt: skip
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment, encoding="utf-8", errors="replace", start_new_session=True, cwd=self.place,
        )  # fmt: skip

    def _stop(self) -> str:
        """Returns its last words."""
        process, self.process = self.process, None
        if process is None:
            return ""
        process.kill()
        end_family(self.mark)
        words = process.communicate()[1].strip().splitlines()
        return words[-1].rstrip(".") if words else ""

    def judged(self, exercise: Exercise, path: Path, limit: float, passed: Sequence[str] = ()) -> tuple[Verdict, bool]:
        """The verdict; and whether the file never ended loading. What has `passed` need not be tried again."""
        if self.is_closed:
            raise LearnError("the check was ended.")
        process = self.process = self.process or self._begin()
        assert process.stdin and process.stdout
        # The keeper cuts its cells off. This is for one that cannot: it is stopped, or there is no fork here.
        patience = (PATIENCE + 1) * limit + 30 * hasattr(os, "fork")
        alarm = threading.Timer(patience, process.kill)
        alarm.start()
        alarm_at = time.monotonic() + patience
        order = {
            "number": exercise.number,
            "path": str(path),
            "limit": limit,
            "scratch": self.place,
            "passed": [*passed],
        }
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            alarm.cancel()
        with suppress(ValueError, TypeError):
            facts, is_stuck = json.loads(line)
            return Verdict(**{name: printable(fact) for name, fact in facts.items()}), is_stuck
        if time.monotonic() >= alarm_at:
            self._stop()
            message = f"still running after {patience:g} s: something that does not end, or far too much work."
            return Verdict(exercise.number, FAILED, message), False
        what = self._stop() or "it killed the process that judges it"  # or a fault of ours: then there are last words
        return Verdict(exercise.number, FAILED, f"the check of {exercise.number} came to no end: {what}."), False


def printable(fact: Any) -> Any:
    """Texts without what would move a terminal's cursor, or could not be printed at all."""
    if isinstance(fact, list):
        return [printable(part) for part in fact]
    if not isinstance(fact, str):
        return fact
    shown = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in fact)
    return "".join(shown)


def require_hypothesis() -> None:
    from importlib.util import find_spec

    if find_spec("hypothesis") is None:
        raise LearnError(
            "checking needs the package hypothesis, which finds the smallest example that fails. "
            "Install it with: pip install hypothesis"
        )
