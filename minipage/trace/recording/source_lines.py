"""Which lines of source did what: looked up from outside, while it happens.

    pool.free(7)  ◀─ line 87 of BlockTable.free  ◀─ line 208 of Scheduler.finish  ◀─ …

Whoever calls the block pool stands on Python's stack at that moment, with file and line, whether it is minipage's own
code or a learner's. What is no call of the pool (the model runs, a token is drawn) is done by lines that name what they
do: `lines_naming` finds these in the source of a function. No line number is written down anywhere.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import minipage

PACKAGE = Path(minipage.__file__).parent
OWN = str(Path(__file__).parent)  # where the recorder's own functions are
DEPTH = 2  # callers that are shown, the innermost ones
MOST_LINES = 12  # of a function of the viewer's own, which is shown from its beginning


class SourceLines:
    """The functions that were at work, and since the last `take` their lines, and the blocks that they dealt with."""

    def __init__(self) -> None:
        self.functions: list[dict[str, Any]] = []  # {"file", "name", "first" (a line's number), "lines"}
        self._numbers: dict[CodeType, int | None] = {}  # function -> its index among them; None: it has no source
        self._named: dict[tuple[CodeType | None, tuple[str, ...]], list[list[Any]]] = {}  # what was found by name
        self._seen: dict[tuple[int, int], list[int]] = {}  # (function, line) -> blocks

    def note(self, method: Callable[..., Any], blocks: list[int]) -> None:
        """`method` of the block pool has dealt with `blocks`, called by whoever is on the stack below the recorder."""
        for frame in callers(sys._getframe()):
            number = self.number(frame.f_code)
            if number is not None:
                self._seen.setdefault((number, frame.f_lineno), []).extend(blocks)
        for number, line in self.whole(method) or self.naming(method, "_free_queue", "_ref_counts"):
            self._seen.setdefault((number, line), []).extend(blocks)

    def take(self) -> list[list[int]]:
        """[function, line, blocks ...] of each line since the last time, the outermost callers first."""
        seen, self._seen = self._seen, {}
        return [[*place, *dict.fromkeys(blocks)] for place, blocks in seen.items()]

    def naming(self, function: Callable[..., Any] | None, *names: str) -> list[list[int]]:
        """[function, line] of the lines of `function` that name one of `names`."""
        key = code_of(function), names
        if key not in self._named:
            number = self.number(key[0])
            lines = lines_of(key[0], names) if key[0] is not None and number is not None else []
            self._named[key] = [[number, line] for line in lines]
        return self._named[key]

    def whole(self, function: Callable[..., Any] | None) -> list[list[int]]:
        """[function, line] of the first lines of a function that is the viewer's own; of others there is too much."""
        code = code_of(function)
        if code is None or code.co_filename.startswith(str(PACKAGE)):
            return []
        number = self.number(code)
        if number is None:
            return []
        source = self.functions[number]
        return [[number, source["first"] + i] for i in range(min(MOST_LINES, len(source["lines"])))]

    def number(self, code: CodeType | None) -> int | None:
        """The index of a function among `functions`; None if there is no source to show."""
        if code is None:
            return None
        if code not in self._numbers:
            self._numbers[code] = None
            if (source := source_of(code)) is None:
                return None
            self._numbers[code] = len(self.functions)
            self.functions.append({"file": short(code.co_filename), "name": name_of(code), **source})
        return self._numbers[code]


def callers(frame: FrameType | None) -> list[FrameType]:
    """Who called the recorder, the outermost first, up to where it stands in for a phase; the last DEPTH of them."""
    found: list[FrameType] = []
    while frame is not None and frame.f_code.co_filename.startswith(OWN):
        frame = frame.f_back
    while frame is not None and len(found) < DEPTH and not frame.f_code.co_filename.startswith(OWN):
        found.insert(0, frame)
        frame = frame.f_back
    return found


def code_of(function: Callable[..., Any] | None) -> CodeType | None:
    """The code of a function or method; of one that wraps another, of the other."""
    return getattr(inspect.unwrap(function), "__code__", None) if function else None


def short(filename: str) -> str:
    """A path as a reader would say it: from the package's folder on, or the last two parts of it."""
    path = Path(filename)
    if path.is_relative_to(PACKAGE):
        return path.relative_to(PACKAGE.parent).as_posix()
    return "/".join(path.parts[-2:])


def name_of(code: CodeType) -> str:
    return code.co_qualname.replace("<locals>.", "")


@cache  # of many recordings in one process, the first reads the files
def source_of(code: CodeType) -> dict[str, Any] | None:
    """{"first" (a line's number), "lines"} of a function; None if it was typed in, or made by a program."""
    try:
        lines, first = inspect.getsourcelines(code)
    except (OSError, TypeError, IndexError):
        return None
    return {"first": first, "lines": textwrap.dedent("".join(lines)).splitlines()}


@cache
def lines_of(code: CodeType, names: tuple[str, ...]) -> list[int]:
    """The numbers of the lines on which a statement of this function names one of `names`."""
    source = source_of(code)
    return lines_naming(source["lines"], source["first"], names) if source else []


def lines_naming(lines: list[str], first: int, names: Iterable[str]) -> list[int]:
    """The same of a function that begins on line `first`."""
    wanted = set(names)
    found: set[int] = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.Name) and node.id in wanted:
            found.add(first + node.lineno - 1)
        elif isinstance(node, ast.Attribute) and node.attr in wanted:  # its name is at its end
            found.add(first + (node.end_lineno or node.lineno) - 1)
    return sorted(found)
