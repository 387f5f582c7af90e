"""Runs the graders of one exercise on a solution, and says what came of it in words.

The graders of exercise 3.2 are the functions of graders/test_03_block_pool.py whose names begin with `test_3_2_`. They
take a Solution, and ask only for what the docstrings promise. pytest runs them, too (pytest_plugin.py).
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import cache
from inspect import signature
from typing import Any

from minipage.learn.course import Exercise, Lesson
from minipage.learn.load import Solution, describe, line_of, stubs, where, written
from minipage.learn.origin import borrowed, is_copy

PASSED, TODO, FAILED = "passed", "to do", "failed"
MOST_PRINTED = 2000  # characters


class Wrong(AssertionError):
    """A solution does something else than it should."""

    def __init__(self, why: str, expected: Any = None, got: Any = None, what: str = "") -> None:
        super().__init__(why)
        self.why, self.expected, self.got, self.what = why, expected, got, what


@dataclass
class Verdict:
    """What came of one exercise."""

    number: str
    status: str  # PASSED, TODO or FAILED
    message: str = ""  # a sentence or two
    line: int = 0  # of the learner's file; 0: nowhere in particular
    expected: str = ""
    got: str = ""
    calls: list[str] = field(default_factory=list)  # the smallest sequence that shows it
    picture: list[str] = field(default_factory=list)  # of the pool after these calls
    printed: str = ""  # by the learner's code, during these calls

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def graders(lesson: Lesson) -> dict[str, list[Callable[[Solution], None]]]:
    """By exercise number, the functions that judge it."""
    module = importlib.import_module(f"minipage.learn.graders.test_{lesson.name}")
    found: dict[str, list[Callable[[Solution], None]]] = {}
    for name, function in vars(module).items():
        if match := re.match(r"test_(\d+)_(\d+)_", name):
            found.setdefault(f"{match[1]}.{match[2]}", []).append(function)
        elif hasattr(function, "cache_info") and not signature(function).parameters:
            function()  # what they make once, they make now: later, they can import nothing of minipage (hidden.py)
    return found


def judge(exercise: Exercise, solution: Solution) -> Verdict:
    """Grade one exercise. Nothing that the learner's code does raises an exception here."""
    printed = Printed()
    solution.diary.on_begin = printed.clear
    solution.diary.begin()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            verdict = _judge(exercise, solution)
        except BaseException as error:  # even to say what is wrong can raise: a __str__ of theirs, for example
            verdict = Verdict(exercise.number, FAILED, f"what it does or returns cannot be shown: {describe(error)}")
    if verdict.status == FAILED:
        verdict.printed = printed.getvalue()
    return verdict


class Printed(io.StringIO):
    """What the learner's code prints: the beginning of it, however much it is."""

    def write(self, text: str) -> int:
        if self.tell() < MOST_PRINTED:
            super().write(text[: MOST_PRINTED - self.tell()])
        return len(text)

    def clear(self) -> None:
        self.seek(0)
        self.truncate()


def _judge(exercise: Exercise, solution: Solution) -> Verdict:
    number, line = exercise.number, line_of(solution.path, exercise.names[0])
    if lost := missing(exercise, solution):
        return Verdict(number, FAILED, lost, line)
    what, line_of_it = borrowed(exercise, solution)
    if what:
        return Verdict(number, FAILED, f"0 points: {what}", line_of_it)
    if unwritten := stubs(solution, exercise.names):
        return todo(exercise, unwritten[0].message, unwritten[0].line)
    for grader in graders(exercise.lesson)[number]:
        try:
            grader(solution)
        except NotImplementedError as error:
            return todo(exercise, str(error), where(error.__traceback__, solution.path).line)
        except Exception as error:
            return failed(exercise, error, solution, line)
        except BaseException as error:  # SystemExit, KeyboardInterrupt: raised by their code
            place = where(error.__traceback__, solution.path)
            what = (
                "ends Python itself (sys.exit)." if isinstance(error, SystemExit) else f"stops with {describe(error)}"
            )
            return Verdict(number, FAILED, f"your code {what}", place.line or line)
    return Verdict(
        number,
        PASSED,
        "this is minipage's own solution, word for word." if is_copy(exercise.lesson, solution.path) else "",
    )


def missing(exercise: Exercise, solution: Solution) -> str:
    """A sentence, if something that belongs to the exercise is not in the file."""
    for name in exercise.names:
        if not defines(solution, name):
            return (
                f"there is no {name} in this file any more, or it is something else. `learn reset "
                f"{exercise.lesson.number}` puts the file back as it was given (yours is kept beside it); its "
                "signature has to stay."
            )
    return ""


def defines(solution: Solution, name: str) -> bool:
    """Whether the learner's file itself has this function, or this method (not what minipage's classes hand down)."""
    owner, _, method = name.rpartition(".")
    if not owner:
        return callable(getattr(solution.module, name, None))
    return written(solution, owner, method) is not None


def todo(exercise: Exercise, said: str, line: int) -> Verdict:
    match = re.match(r"Exercise (\d+\.\d+): (.*)", said)
    if match is None:
        message = f"line {line} raises NotImplementedError; write what belongs there."
    elif match[1] == exercise.number:
        message = match[2]
    else:
        message = f"needs {match[1]} first: {match[2]}"
    return Verdict(exercise.number, TODO, message, line)


def failed(exercise: Exercise, error: Exception, solution: Solution, line: int) -> Verdict:
    diary, number = solution.diary, exercise.number
    place = where(error.__traceback__, solution.path)
    verdict = Verdict(number, FAILED, "", line, calls=diary.lines, picture=diary.picture())
    if isinstance(error, Wrong):
        verdict.message = error.why
        if error.what or error.expected is not None or error.got is not None:
            what = error.what and f"{error.what}: "
            verdict.expected = what + diary.show(error.expected)
            verdict.got = what + diary.show(error.got)
    elif isinstance(error, AssertionError) and not place.line:
        verdict.message = str(error)
    elif type(error).__module__.startswith("hypothesis"):
        verdict.message = (
            "the same calls gave different results when they were made a second time. Is something kept outside of "
            "`self`, such as a list in the class or a mutable default argument; or drawn at random?"
        )
    elif place.line:
        verdict.message = f"line {place.line}, `{place.code}`: {describe(error)}"
        verdict.line = place.line
    else:
        verdict.message = f"what {exercise.names[0]} does or returns cannot be used: {describe(error)}"
    return verdict
