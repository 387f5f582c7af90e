"""Whose code is it? An exercise is written by whoever hands it in: not borrowed from minipage, or put on for the judge.

borrowed    what its file takes from minipage beyond what the stub was given with: the reference, a solution, ...
watch       the reference's methods and functions, so that a call of them by the learner's code is noticed
pretenders  classes whose objects claim to equal anything
"""

from __future__ import annotations

import ast
import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from functools import cache, update_wrapper
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from minipage.learn.course import HERE, Exercise, Lesson
from minipage.learn.hidden import JUDGES, is_record
from minipage.learn.load import Solution, innermost, read, written
from minipage.renamed import RENAMED

REFERENCES = {  # lesson: minipage's own class that its exercises are about
    "3": ("minipage.memory", "BlockPool"),
    "4": ("minipage.memory", "BlockTable"),
    "6": ("minipage.scheduling", "Scheduler"),
    "7": ("minipage.memory", "BlockTable"),
    "8": ("minipage.memory", "PrefixCache"),
    "9": ("minipage.scheduling", "Scheduler"),
}
INHERITED = "6", "7", "9"  # there the stub itself is a class that goes on from another
PACKAGE = HERE.parent
PROBES = object(), 271828182845, "no such thing", -0.577215


class Import(NamedTuple):
    module: str
    name: str  # empty: the module itself
    line: int


def borrowed(exercise: Exercise, solution: Solution) -> tuple[str, int]:
    """A sentence and a line, if this file uses what it should write; or empty."""
    if is_copy(exercise.lesson, solution.path):
        return "", 0
    what, line = imported(exercise.lesson, solution.path)
    if what:
        return what, line
    given = given_names(exercise.lesson)
    for name in exercise.names:
        if what := reference_behind(solution, name, given):
            return f"{name} is minipage's own {what}: this file uses it instead of its own.", 0
    return "", 0


def imported(lesson: Lesson, path: Path) -> tuple[str, int]:
    """The same, for what its import statements say."""
    given = given_names(lesson)
    for found in imports(read(path)):
        if (found.module, found.name) not in given and not is_harmless(found):
            what = f"minipage's own {found.name or found.module}"
            return (
                f"this file uses {what} instead of its own: of minipage, take only what the stub imports.",
                found.line,
            )
    return "", 0


@cache
def given_names(lesson: Lesson) -> frozenset[tuple[str, str]]:
    """What the stub imports from minipage, as (module, name); under the old name, too, of what has a new one."""
    given = {f"{found.module}.{found.name}" for found in imports(read(lesson.stub))}
    given |= {old for old, new in RENAMED.items() if new in given}
    return frozenset((module, name) for module, _, name in (each.rpartition(".") for each in given))


def is_copy(lesson: Lesson, path: Path) -> bool:
    """Whether it is minipage's own solution, word for word except comments. That is known to be right."""
    return ast.dump(ast.parse(read(path))) == reference_of(lesson)


@cache
def reference_of(lesson: Lesson) -> str:
    """minipage's own solution, as its syntax tree says it."""
    return ast.dump(ast.parse(read(lesson.solution)))


def imports(source: str) -> Iterator[Import]:
    """What a file imports from minipage, wherever it does; not what is for type checkers alone."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (Import(a.name, "", node.lineno) for a in node.names if is_ours(a.name))
        elif isinstance(node, ast.ImportFrom) and is_ours(node.module or ""):
            yield from (Import(node.module or "", alias.name, node.lineno) for alias in node.names)


def is_ours(module: str | None) -> bool:
    return f"{module}.".startswith("minipage.")


def is_judge(module: str) -> bool:
    return f"{module}.".startswith(JUDGES)


def is_harmless(found: Import) -> bool:
    """Errors, enumerations and records: no exercise is about these."""
    if "minipage.errors" in (found.module, f"{found.module}.{found.name}"):
        return True
    if not found.name or is_judge(found.module):
        return False
    try:
        return is_record(getattr(importlib.import_module(found.module), found.name, None))
    except ImportError:
        return True  # Python will say it
    except PermissionError:  # hidden
        return False


def reference_behind(solution: Solution, name: str, given: Set[tuple[str, str]]) -> str:
    """The name of minipage's class or function that answers for this name, if one does."""
    owner, _, method = name.rpartition(".")
    thing = getattr(solution.module, owner or method, None)
    if owner and isinstance(thing, type):
        allowed = {base for base in thing.__mro__ for _, name in given if base.__name__ == name}
        allowed |= {base for cls in allowed for base in cls.__mro__}  # the stub is a Scheduler, and so what that is
        for base in thing.__mro__[1:]:
            if is_ours(base.__module__) and base not in allowed:
                return base.__name__
    code = innermost(written(solution, owner, method))
    return code.co_qualname if code and Path(code.co_filename).is_relative_to(PACKAGE) else ""


def watch(lesson: Lesson, path: Path) -> Callable[[], str]:
    """From here on: a sentence, once the learner's code has called what it should write; or empty."""
    calls: list[str] = []
    own, getframe = str(path), sys._getframe

    def note(name: str, qualname: str) -> None:
        """Is it a line of theirs that calls this? A Scheduler of theirs may call other methods that it inherits."""
        frame, line, names = getframe(2), getframe(2).f_lineno, set()
        while frame is not None and frame.f_code.co_filename == own:
            names.add(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        if names and (name in names or lesson.number not in INHERITED):
            calls.append(f"line {line} calls minipage's own {qualname}, instead of doing it.")

    @cache
    def watched(function: FunctionType) -> Any:
        # What it keeps, it keeps in its defaults: the fence guards these, but neither __closure__ nor __wrapped__.
        def call(*args: Any, _function: Any = function, _note: Any = note, **kwargs: Any) -> Any:
            _note(_function.__name__, _function.__qualname__)
            return _function(*args, **kwargs)

        update_wrapper(call, function)
        del call.__wrapped__  # type: ignore[attr-defined]
        call.__code__ = call.__code__.replace(co_qualname=function.__qualname__)
        return call

    names = {name.rpartition(".")[2] for exercise in lesson.exercises for name in exercise.names}
    places: list[Any] = [module for name, module in sys.modules.items() if is_ours(name) and not is_judge(name)]
    if lesson.number in REFERENCES:
        module_name, class_name = REFERENCES[lesson.number]
        places.append(getattr(importlib.import_module(module_name), class_name))
    for place in places:
        for name in names & vars(place).keys():
            thing = vars(place)[name]
            if isinstance(thing, FunctionType) and (isinstance(place, type) or not name.startswith("__")):
                setattr(place, name, watched(thing))
            elif isinstance(thing, property):
                setattr(place, name, property(watched(thing.fget)))
    return lambda: calls[0] if calls else ""


def pretenders(solution: Solution) -> str:
    """A sentence, if objects of theirs equal what they cannot."""
    things = [thing for thing in vars(solution.module).values() if is_plain_object(thing)]
    for cls in new_classes():
        if cls.__module__ == solution.module.__name__ and {"__eq__", "__ne__"} & {*vars(cls)}:
            with suppress(Exception):
                things.append(cls.__new__(cls))  # type: ignore[call-overload]
    for thing in things:
        with suppress(Exception):
            if all(thing == probe for probe in PROBES) or not any(thing != probe for probe in PROBES):
                return (
                    f"objects of {type(thing).__name__} say that they equal anything, which says nothing of their "
                    "contents."
                )
    return ""


def is_plain_object(thing: Any) -> bool:
    """Not a module, class or function: something whose == means its contents."""
    return not callable(thing) and type(thing).__module__ not in ("builtins", "numpy")


def new_classes() -> Iterator[type]:
    """Those that were made in this process: what the keeper had is frozen (gc.freeze), and the collector skips it."""
    return (thing for thing in gc.get_objects() if issubclass(type(thing), type))
