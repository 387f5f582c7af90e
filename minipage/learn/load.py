"""A learner's file as a module. Whatever is wrong with it becomes a sentence that names the file and the line."""

from __future__ import annotations

import ast
import importlib.util
import io
import sys
import tokenize
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from stat import S_ISREG
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, NamedTuple

from minipage.errors import LearnError
from minipage.learn.course import Lesson
from minipage.learn.diary import Diary
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.renamed import accept_old_names

MOST_BYTES = 1_000_000  # of an exercise
MOST_SAID = 500  # letters of an exception
UNREADABLE = SyntaxError, ValueError, RecursionError, MemoryError  # what ast.parse raises

SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING,
    tokenize.ENDMARKER,
}  # fmt: skip


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
        self.known_outcomes: dict[Any, bool] = {}  # of graders that were run already

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def load(lesson: Lesson, path: Path) -> Solution:
    """Run the file of a lesson. Raises CodeError if it cannot be read or does not run."""
    source = read(path)
    name = f"exercise_{lesson.name}"
    try:
        compile(source, str(path), "exec")
    except UNREADABLE as error:
        line = getattr(error, "lineno", 0) or 0
        text = (getattr(error, "text", "") or "").strip()[:80]
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
    accept_the_old_words(module)
    return Solution(module, lesson, path)


def accept_the_old_words(module: ModuleType) -> None:
    """An exercise that was written when `block_hashes` was still called `keys` stays right."""
    classes = {"BlockPool": BlockPool, "BlockTable": BlockTable, "CopyOnWrite": BlockTable, "PrefixCache": PrefixCache}
    for name, like in classes.items():
        own = getattr(module, name, None)
        if isinstance(own, type) and own.__module__ == module.__name__:
            with warnings.catch_warnings(action="ignore"):
                accept_old_names(own, like)


def read(path: Path) -> str:
    """The text of a learner's file, in whatever encoding it declares. Raises CodeError."""
    name = f"{path.parent.name}/{path.name}"  # where else it lies is nobody's business: their page says this
    try:
        facts = path.stat()
        if not S_ISREG(facts.st_mode):
            raise CodeError(
                f"{name} is no file but a folder, a pipe or a device. Move it away; `learn reset "
                f"{path.parent.name}` puts a file there."
            )
        if facts.st_size > MOST_BYTES:
            raise CodeError(f"{name} has {facts.st_size // 1000} kB; an exercise has a few.")
        with tokenize.open(path) as file:
            return file.read()
    except FileNotFoundError:
        raise CodeError(f"{name} is not there; `learn reset {path.parent.name}` puts it back.") from None
    except SyntaxError as error:  # of the line that declares the encoding
        said = error.msg.replace(f" for {str(path)!r}", "")
        raise CodeError(f"Python cannot read this file: {said}. Save it as UTF-8.", error.lineno or 0) from None
    except (LookupError, UnicodeError) as error:  # rot13, for one, is a known encoding, and not of texts
        raise CodeError(f"{name} cannot be read: {error}. Save it as UTF-8.") from None
    except OSError as error:
        raise CodeError(f"{name} cannot be read: {error.strerror or error}.") from None


def lines_of(source: str) -> list[str]:
    """As Python counts them. To str.splitlines a form feed or a U+2028 ends a line, too."""
    return source.removesuffix("\n").split("\n")


def is_untouched(path: Path, lesson: Lesson) -> bool:
    """Whether its code is as it was given: whatever its line ends, comments, and the numbers in its docstrings."""
    try:
        given, found = read(lesson.stub), read(path)
        return given == found or what_runs(given) == what_runs(found)
    except (CodeError, tokenize.TokenError, *UNREADABLE):
        return False


def what_runs(source: str) -> list[str]:
    return [token.string for token in tokens_that_run(source)]


def tokens_that_run(source: str) -> Iterator[tokenize.TokenInfo]:
    """The tokens of a file without comments, docstrings and line ends. Raises what tokenize raises."""
    at_line_start = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT and not (token.type == tokenize.STRING and at_line_start):
            yield token
        at_line_start = token.type in SILENT


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
    # shutil.rmtree adds a filename to what is raised; of an OSError with a sentence alone, str() then says no word.
    said_alone = isinstance(error, OSError) and len(error.args) == 1
    try:
        text = str(error.args[0] if said_alone else error).strip().splitlines()
    except Exception:  # a __str__ of theirs
        text = ["(it cannot be shown)"]
    said = f"{type(error).__name__}: {text[0][:MOST_SAID]}" if text else type(error).__name__
    if isinstance(error, ModuleNotFoundError) and (helper := lies_beside(error)):
        return f"{said}. {helper} is not looked at: everything has to be in exercise.py, which is all that is checked"
    return said


def lies_beside(error: ModuleNotFoundError) -> str:
    """The name of a module of their own that they wanted to import, if that is what went wrong."""
    name = f"{(error.name or '').partition('.')[0]}.py"
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    folders = [folder for file in files for folder in (file.parent, file.parent.parent) if file.name == "exercise.py"]
    return name if any((folder / name).exists() for folder in folders) else ""


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
        node = definitions(read(path)).get(name)
    except (LearnError, *UNREADABLE):
        return 0
    return node.lineno if node else 0


def is_stub(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function still ends in `raise NotImplementedError`, and nothing returns before that."""
    *before, last = node.body
    if any(isinstance(statement, ast.Return) for statement in before):
        return False
    return isinstance(last, ast.Raise) and last.exc is not None and "NotImplementedError" in ast.dump(last.exc)


class Stub(NamedTuple):
    name: str  # of the function
    line: int  # that says what is to be written
    message: str


def stubs(solution: Solution, names: Sequence[str]) -> list[Stub]:
    """Those of `names` that are not written yet."""
    tree = ast.parse(read(solution.path))
    functions = {node.lineno: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    functions |= {node.decorator_list[0].lineno: node for node in functions.values() if node.decorator_list}
    found = []
    for name in names:
        node = functions.get(first_line(written(solution, *name.rpartition(".")[::2]), solution.path))
        if node and is_stub(node):
            said = [part.value for part in ast.walk(node.body[-1]) if isinstance(part, ast.Constant)]
            found.append(Stub(name, node.body[-1].lineno, str(said[0]) if said else ""))
    return found


def written(solution: Solution, owner: str, name: str) -> Any:
    """What the file itself has under this name: a function, or what a class has, or its bases in the file.

    None if there is nothing; what a class inherits from elsewhere is not theirs.
    """
    if not owner:
        return getattr(solution.module, name, None)
    cls = getattr(solution.module, owner, None)
    bases = [base for base in getattr(cls, "__mro__", ()) if base is cls or base.__module__ == solution.module.__name__]
    return next((vars(base)[name] for base in bases if name in vars(base)), None)


def first_line(thing: Any, path: Path) -> int:
    """Where a function of this file begins, whatever is wrapped around it; 0: it is from elsewhere."""
    code = innermost(thing)
    return code.co_firstlineno if code and Path(code.co_filename) == path else 0


def innermost(thing: Any) -> CodeType | None:
    """What runs when this is called: inside of a property, a staticmethod, cache, jit, partial, ..."""
    for _ in range(10):
        if isinstance(thing, FunctionType) and not hasattr(thing, "__wrapped__"):
            return thing.__code__
        inner = (getattr(thing, name, None) for name in ("__wrapped__", "fget", "__func__", "py_func", "fn", "func"))
        thing = next((found for found in inner if found is not None), None)
    return None
