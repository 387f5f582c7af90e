"""A learner's folder: a copy of the exercises, and a small file that remembers what was passed.

my-minipage/
    .minipage-learn.json        passed exercises, each with a hash of the file as it was then; hints that were seen;
                                the seed of the numbers in its examples, if it has any
    03_block_pool/exercise.py   theirs to change
    03_block_pool/lesson.ipynb  if the lesson has one
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minipage.errors import LearnError
from minipage.learn.course import Exercise, Lesson, exercises, lessons
from minipage.learn.load import UNREADABLE, CodeError, definitions, is_untouched, lines_of, read
from minipage.learn.variants import stub_text

STATE = ".minipage-learn.json"


class Workspace:
    """Raises LearnError if `folder` is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.load()

    def load(self) -> None:
        folder = self.folder
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            self.passed: dict[str, str] = dict(state["passed"])
            self.hints: dict[str, int] = dict(state["hints"])
            self.seed = str(state.get("seed", ""))  # of the numbers in the examples
        except FileNotFoundError:
            raise LearnError(f"{folder} is no workspace; `learn init {folder}` makes it one.") from None
        except (ValueError, KeyError, TypeError):
            raise LearnError(
                f"{folder / STATE} is damaged. Delete it and `learn init` again: exercises stay as they are."
            ) from None

    def save(self) -> None:
        write_state(self.folder, {"passed": self.passed, "hints": self.hints, "seed": self.seed})

    def file(self, lesson: Lesson) -> Path:
        return self.folder / lesson.name / "exercise.py"

    def fingerprint(self, lesson: Lesson) -> str:
        try:
            return hashlib.sha256(read(self.file(lesson)).encode()).hexdigest()[:16]
        except CodeError:
            return ""

    def record(self, exercise: Exercise, passed: bool) -> None:
        self.load()  # a check takes a while, and `watch` goes on for hours: another terminal may have written since
        if passed:
            self.passed[exercise.number] = self.fingerprint(exercise.lesson)
        else:
            self.passed.pop(exercise.number, None)
        self.save()

    def has_passed(self, exercise: Exercise) -> bool:
        return exercise.number in self.passed

    def changed_since(self, exercise: Exercise) -> bool:
        """Whether the file is another than the one that passed."""
        return self.passed.get(exercise.number) not in (None, self.fingerprint(exercise.lesson))

    def current(self) -> Lesson:
        """The lesson that is being worked on: the one whose file was written last; at first, the first one."""
        begun = [lesson for lesson in lessons() if self.is_begun(lesson)]
        return max(begun, key=lambda lesson: self.file(lesson).stat().st_mtime) if begun else lessons()[0]

    def is_begun(self, lesson: Lesson) -> bool:
        return self.file(lesson).is_file() and not is_untouched(self.file(lesson), lesson)

    def next(self) -> Exercise | None:
        """The first exercise that is not passed, in the current lesson, then in those after it, then in all."""
        start = lessons().index(self.current())
        order = [e for lesson in lessons()[start:] + lessons()[:start] for e in lesson.exercises]
        return next((exercise for exercise in order if not self.has_passed(exercise)), None)

    def reset(self, chosen: list[Exercise], whole_file: bool) -> tuple[Path, Path]:
        """Put the stub back, of these exercises of one lesson or of the file; returns it and the copy of the old."""
        lesson = chosen[0].lesson
        path, stub = self.file(lesson), stub_text(lesson, self.seed)
        new, encoding = stub, "utf-8"
        if not whole_file:
            new, encoding = with_stubs(read(path), stub, [name for e in chosen for name in e.names]), encoding_of(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while os.path.lexists(backup := path.with_name(f"exercise.{number}.bak")):
            number += 1
        if os.path.lexists(path):
            path.replace(backup)
        path.write_text(new, encoding=encoding)
        for exercise in lesson.exercises if whole_file else chosen:
            self.passed.pop(exercise.number, None)
            self.hints.pop(exercise.number, None)
        self.save()
        return path, backup


def encoding_of(path: Path) -> str:
    """As the file declares it, or its first bytes do."""
    with open(path, "rb") as file:
        return tokenize.detect_encoding(file.readline)[0]


def with_stubs(source: str, stub: str, names: list[str]) -> str:
    """`source` with the functions `names` as they are in `stub`; what is not there any more is put at the end.

    Raises CodeError if Python cannot read it.
    """
    try:
        theirs = definitions(source)
    except UNREADABLE as error:
        line = getattr(error, "lineno", 0)
        raise CodeError(f"Python cannot read the file (line {line}), so only all of it can be reset.") from None
    given = definitions(stub)
    if any(name.partition(".")[0] not in theirs for name in names if "." in name):
        return stub  # the class is gone
    lines = [line + "\n" for line in lines_of(source)]

    def place(name: str) -> tuple[int, int]:
        if name in theirs:
            return extent(theirs[name])
        owner = name.rpartition(".")[0]
        end = extent(theirs[owner])[1] if owner else len(lines)
        return end, end

    for name in sorted(names, key=place, reverse=True):
        start, stop = extent(given[name])
        new = stub.splitlines(keepends=True)[start:stop]
        first, last = place(name)
        lines[first:last] = new if name in theirs else ["\n", *new]
    return "".join(lines)


def extent(node: ast.FunctionDef | ast.ClassDef) -> tuple[int, int]:
    """The lines of a definition, decorators included, as a slice."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return first - 1, node.end_lineno or node.lineno


def init(folder: Path, chosen: Sequence[Lesson] = (), seed: str = "") -> list[Path]:
    """Copy the exercises, and the lessons that come with them; what is there already stays. Returns what is new.

    With a seed the examples have numbers of their own (variants.py). Raises LearnError if they have others already.
    """
    new: list[Path] = []
    if (folder / STATE).exists():
        known = Workspace(folder).seed
        if seed not in ("", known):
            raise LearnError(
                f"{folder} was made with {f'the seed {known!r}' if known else 'no seed'}; give a new folder."
            )
        seed = known
    for lesson in chosen or lessons():
        (folder / lesson.name).mkdir(parents=True, exist_ok=True)
        for name in ("exercise.py", "lesson.ipynb"):
            source, copy = lesson.stub.with_name(name), folder / lesson.name / name
            if source.exists() and not copy.exists():
                shutil.copy(source, copy)
                if seed and source == lesson.stub:
                    copy.write_text(stub_text(lesson, seed), encoding="utf-8")
                new.append(copy)
    if not (folder / STATE).exists():
        write_state(folder, {"passed": {}, "hints": {}, "seed": seed})
    return new


def write_state(folder: Path, state: dict[str, Any]) -> None:
    temporary = folder / f"{STATE}.{os.getpid()}"  # another terminal may write, too
    temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
    temporary.replace(folder / STATE)  # all of it or nothing, whatever happens meanwhile


def is_inside_one() -> bool:
    here = Path.cwd()
    return any((parent / STATE).exists() for parent in [here, *here.parents])


def find(folder: str | None) -> Workspace:
    """The workspace in `folder`, or else the one that the current folder is in."""
    if folder is not None:
        return Workspace(Path(folder))
    here = Path.cwd()
    for parent in [here, *here.parents]:
        if (parent / STATE).exists():
            return Workspace(parent)
    raise LearnError(
        "there are no exercises in this folder. `python -m minipage learn init my-minipage` makes a folder with them; "
        "then `cd my-minipage`."
    )


def total_points() -> int:
    return sum(exercise.points for exercise in exercises())
