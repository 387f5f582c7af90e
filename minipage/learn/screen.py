"""What the learner sees: verdicts, lists and texts, as lines of 80 columns or less."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from rich.text import Text

from minipage.errors import LearnError
from minipage.languages import tell
from minipage.learn.course import Exercise, Lesson, lessons
from minipage.learn.judge import FAILED, PASSED, TODO, Verdict
from minipage.learn.load import UNREADABLE, definitions, load, read
from minipage.learn.variants import stub_text
from minipage.learn.workspace import Workspace
from minipage.output import output_console

STYLES = {PASSED: "bold green", TODO: "bold yellow", FAILED: "bold red"}
PLAIN = str.maketrans({"→": ">", "·": ".", "…": "...", "█": "#", "░": "-", "–": "-"})
WIDTH = 78
PROGRAM = "python -m minipage" if Path(sys.argv[0]).name == "__main__.py" else "minipage"


class Screen:
    """Standard output; letters that it does not have are replaced."""

    def __init__(self) -> None:
        self.console = output_console(soft_wrap=True)
        try:
            "→·…█░".encode(self.console.encoding)
            self.letters: dict[int, Any] = {}
        except (UnicodeEncodeError, LookupError):
            self.letters = PLAIN

    def line(self, text: str = "", style: str = "") -> None:
        self.console.print(Text(text.translate(self.letters), style=style))

    def paragraph(self, text: str, indent: str = "    ", style: str = "") -> None:
        """Wrapped; lines that are indented already (code) stay as they are."""
        for block in re.split(r"\n\s*\n", text.strip("\n")):
            if block.startswith(" "):
                for line in block.splitlines():
                    self.line(indent + line, style or "cyan")
            else:
                for line in textwrap.wrap(" ".join(block.split()), WIDTH - len(indent), break_long_words=False):
                    self.line(indent + line, style)
            self.line()

    def status(self, status: str, rest: str) -> None:
        first, *others = textwrap.wrap(rest, WIDTH - 9)
        self.console.print(Text.assemble((f"{status:>7}", STYLES[status]), "  ", first.translate(self.letters)))
        for line in others:
            self.line(" " * 9 + line)

    # ---- verdicts

    def verdict(self, exercise: Exercise, verdict: Verdict, file: Path) -> None:
        place = f"{file}:{verdict.line}" if verdict.line else str(file)
        if verdict.status == PASSED:
            self.status(PASSED, f"{exercise.number} {exercise.title}")
        elif verdict.status == TODO:
            self.status(TODO, f"{exercise.number} {exercise.title}: {verdict.message}")
            self.line(f"         {place}", "dim")
        else:
            self.status(FAILED, f"{exercise.number} {exercise.title}")
            self.line(f"         {place}", "dim")
            self.line()
            self.failure(exercise, verdict)

    def failure(self, exercise: Exercise, verdict: Verdict) -> None:
        if verdict.calls:
            self.line("    " + tell("The smallest case that shows it:"))
            for call in verdict.calls:
                self.line("        " + call, "cyan")
            self.line()
        if verdict.expected or verdict.got:
            self.value(tell("expected"), verdict.expected, "green")
            self.value(tell("but got"), verdict.got, "red")
            self.line()
        if verdict.picture:
            self.line("    " + tell("The pool after that:"))
            for line in verdict.picture:
                self.line("        " + line)
            self.line()
        self.paragraph(verdict.message)
        if verdict.printed:
            self.line("    " + tell("Your code printed:"))
            for line in verdict.printed.splitlines()[:10]:
                self.line("        " + line, "dim")
            self.line()
        self.line(f"    {tell('Stuck?')} {PROGRAM} learn hint {exercise.number}", "dim")

    def value(self, label: str, value: str, style: str) -> None:
        text = Text.assemble(f"    {label:>8}  ", (value.translate(self.letters), style))
        self.console.print(text)

    # ---- lists

    def overview(self, workspace: Workspace) -> None:
        num_passed = sum(workspace.has_passed(e) for lesson in lessons() for e in lesson.exercises)
        total = sum(len(lesson.exercises) for lesson in lessons())
        told = tell("{num_passed} of {total} exercises passed, in {folder}")
        self.line(told.format(num_passed=num_passed, total=total, folder=workspace.folder))
        self.line()
        for lesson in lessons():
            done = [workspace.has_passed(exercise) for exercise in lesson.exercises]
            bar = "".join("█" if passed else "░" for passed in done)
            count = "done" if all(done) else f"{sum(done)} of {len(done)}" if any(done) else ""
            self.line(f"{lesson.number:>3} {lesson.title:<34} {bar:<8} {count}", "green" if all(done) else "")
        self.line()
        upcoming = workspace.next()
        if upcoming is None:
            self.line(f"All done. See your engine at work: {PROGRAM} demo --mine {workspace.folder}")
        else:
            self.line(f"{tell('Next is')} {upcoming.number} {tell(upcoming.title)}:  {PROGRAM} learn next")
            self.line(f"{tell('The steps of a lesson:')}  {PROGRAM} learn list 3")

    def lesson(self, lesson: Lesson, workspace: Workspace) -> None:
        self.line(f"{lesson.number} {lesson.title}: {relative(workspace.file(lesson))}")
        for exercise in lesson.exercises:
            status = PASSED if workspace.has_passed(exercise) else TODO
            changed = " (the file has changed since)" if workspace.changed_since(exercise) else ""
            points = "1 point" if exercise.points == 1 else f"{exercise.points} points"
            self.status(status, f"{exercise.number} {exercise.title}, {points}{changed}")

    def task(self, exercise: Exercise, workspace: Workspace) -> None:
        """What to do, in the words of the docstrings."""
        path = workspace.file(exercise.lesson)
        found = definitions(stub_text(exercise.lesson, workspace.seed))
        theirs = definitions_of(path)
        self.line(f"{exercise.number} {exercise.title}", "bold")
        for name in exercise.names:
            node = found[name]
            line = f":{theirs[name].lineno}" if name in theirs else ""
            self.line(f"    {name}  in {relative(path)}{line}", "dim")
            doc = inspect.cleandoc(ast_docstring(node))
            if about := re.search(rf"Exercise {re.escape(exercise.number)}: (.*)", doc, flags=re.DOTALL):
                self.line()
                self.docstring(about[1])
                self.line()
        if exercise is exercise.lesson.exercises[0] and path.with_name("lesson.ipynb").exists():
            self.line(f"What it is about: {relative(path.with_name('lesson.ipynb'))}, a notebook.", "dim")
        self.line(f"{tell('Write it in your editor, save, then:')} {PROGRAM} learn check", "dim")

    def docstring(self, text: str) -> None:
        """A docstring, whose lines may be longer than the screen's: each paragraph, and each argument, wrapped anew."""
        entries: list[str] = []
        goes_on = False
        for line in text.splitlines():
            indent = len(line) - len(line.lstrip())
            if goes_on and line and (indent == 0 or indent > len(entries[-1]) - len(entries[-1].lstrip())):
                entries[-1] += " " + line.strip()
            else:
                entries.append(line)
            goes_on = bool(line) and not line.endswith(":")
        for entry in entries:
            margin = "    " + " " * (len(entry) - len(entry.lstrip()))
            further = margin + "    " * entry.startswith(" ")
            lines = textwrap.wrap(entry.strip(), WIDTH, initial_indent=margin, subsequent_indent=further)
            self.line("\n".join(lines))

    def solution(self, exercise: Exercise) -> None:
        self.line(f"{exercise.number} {exercise.title}: as minipage has it", "bold")
        self.line()
        solved = load(exercise.lesson, exercise.lesson.solution)
        for name in (*exercise.names, *exercise.also):
            thing: Any = solved.module
            for part in name.split("."):
                thing = inspect.getattr_static(thing, part) if isinstance(thing, type) else getattr(thing, part)
            function: Any = thing.fget if isinstance(thing, property) else thing
            source = inspect.getsource(function)
            for line in textwrap.dedent(source).rstrip().splitlines():
                self.line("    " + line, "cyan")
            self.line()
        self.paragraph(exercise.why)


def ast_docstring(node: Any) -> str:
    import ast

    return ast.get_docstring(node) or ""


def definitions_of(path: Path) -> dict[str, Any]:
    try:
        return dict(definitions(read(path)))
    except (LearnError, *UNREADABLE):
        return {}


def relative(path: Path) -> Path:
    """From here, if that is shorter."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
