"""A learner's file as a module. Whatever is wrong with it becomes a sentence that names the file and the line."""

from __future__ import annotations

import ast
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

from minipage.errors import LearnError
from minipage.learn.course import Lesson
from minipage.learn.diary import Diary


class Place(NamedTuple):
    line: int  # 0: nowhere in particular
    code: str  # the line itself


class CodeError(LearnError):
    """Something is wrong with the learner's code."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class Solution:
    """What a file defines, as attributes; and the diary of what is done with it."""

    def __init__(self, module: ModuleType, lesson: Lesson, path: Path) -> None:
        self.module, self.lesson, self.path, self.diary = module, lesson, path, Diary()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def load(lesson: Lesson, path: Path) -> Solution:
    """Run the file of a lesson. Raises CodeError if it cannot be read or does not run."""
    source = read(path)
    name = f"exercise_{lesson.name}"
    try:
        compile(source, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", 0) or 0
        text = (getattr(error, "text", "") or "").strip()
        what = getattr(error, "msg", str(error))
        raise CodeError(f"Python cannot read this file: {what}" + f": `{text}`" * bool(text), line) from None
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # SystemExit, too: it is their code
        place = where(error.__traceback__, path)
        raise CodeError(f"the file does not run: {describe(error)}", place.line) from None
    return Solution(module, lesson, path)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CodeError(f"{path} is not there; `learn reset` puts it back.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CodeError(f"{path} cannot be read: {error}") from None


def laid_over(copy_on_write: Any, table: Any, name: str = "BlockTable") -> Any:
    """Lesson 7's class over lesson 4's. Lesson 4's `append` goes on counting with lesson 4's `blocks_to_allocate`.

    Lesson 7 has another one, which counts the copy, too; an append that was written before there were copies must not
    find that, whether it is called before the copy is made or after.
    """

    class Plain(table):  # type: ignore[misc]
        def append(self, num_tokens: int) -> Any:
            self.blocks_to_allocate = super().blocks_to_allocate  # hides lesson 7's for a moment
            try:
                return super().append(num_tokens)
            finally:
                self.__dict__.pop("blocks_to_allocate", None)

    return type(name, (copy_on_write, Plain), {})


def describe(error: BaseException) -> str:
    """An exception in a line."""
    if isinstance(error, SystemExit):
        return "it ends Python itself (sys.exit)"
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def where(trace: TracebackType | None, path: Path) -> Place:
    """The innermost line of this file that an exception went through."""
    frames = [frame for frame in traceback.extract_tb(trace) if Path(frame.filename) == path]
    return Place(frames[-1].lineno or 0, frames[-1].line or "") if frames else Place(0, "")


# ---- looking at the source, without running it


def definitions(source: str) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Every function, class and method of a file, by names such as "BlockPool.free"."""
    found: dict[str, ast.FunctionDef | ast.ClassDef] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}": child for child in node.body if isinstance(child, ast.FunctionDef)}
    return found


def line_of(path: Path, name: str) -> int:
    """Where a function begins; 0 if it is not there, or the file cannot be read."""
    try:
        node = definitions(path.read_text(encoding="utf-8")).get(name)
    except (OSError, SyntaxError, ValueError):
        return 0
    return node.lineno if node else 0


def is_stub(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function still ends in `raise NotImplementedError`, and nothing returns before that."""
    *before, last = node.body
    if any(isinstance(statement, ast.Return) for statement in before):
        return False
    return isinstance(last, ast.Raise) and last.exc is not None and "NotImplementedError" in ast.dump(last.exc)


def stubs(path: Path, names: list[str]) -> list[str]:
    """Those of `names` that are not written yet, or not there at all."""
    try:
        source = path.read_text(encoding="utf-8")
        found, assigned = definitions(source), assignments(source)
    except (OSError, SyntaxError, ValueError):
        return names
    return [name for name in names if (is_stub(found[name]) if name in found else name not in assigned)]


def assignments(source: str) -> set[str]:
    """What a file and its classes define without `def`, by names such as "BlockPool.num_free"."""
    tree = ast.parse(source)
    owners: list[tuple[str, list[ast.stmt]]] = [("", tree.body)]
    owners += [(f"{node.name}.", node.body) for node in tree.body if isinstance(node, ast.ClassDef)]
    statements = [(owner, s) for owner, body in owners for s in body if isinstance(s, ast.Assign)]
    return {owner + t.id for owner, s in statements for t in s.targets if isinstance(t, ast.Name)}
