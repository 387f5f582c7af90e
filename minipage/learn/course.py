"""Which exercises there are. Each lesson has a text, texts/NN_name.md, that names them, their functions and hints:

# The block pool
part: block pool               (what of the engine it is; not in every lesson)
## 3.2 Allocate
names: BlockPool.allocate
points: 1
aside: yes                     (the part does without it: the learner's engine does not wait for it; not in most)
### Hint                       (three of them, from a nudge to nearly the code)
### Why                        (shown with the solution)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from minipage.errors import LearnError

if TYPE_CHECKING:
    from minipage.trace.drawing.front import Card

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Exercise:
    number: str  # such as "3.2"
    title: str
    names: tuple[str, ...]  # what has to be written, such as "BlockPool.allocate"
    points: int
    hints: tuple[str, ...]
    why: str  # why the solution is written as it is
    also: tuple[str, ...]  # what the solution shows beside `names`
    lesson: Lesson
    is_aside: bool = False  # about something that the lesson's part of the engine does without

    @property
    def order(self) -> tuple[int, int]:
        lesson, step = self.number.split(".")
        return int(lesson), int(step)


@dataclass(frozen=True)
class Lesson:
    name: str  # also of its folder, such as "03_block_pool"
    title: str
    part: str  # of the engine: "block pool", "block table", ...; or empty

    @property
    def number(self) -> str:
        return str(int(self.name[:2]))

    @property
    def stub(self) -> Path:
        """The exercise as it is given. A wheel has it inside the package, a checkout beside it."""
        inside = HERE / "lessons" / self.name / "exercise.py"
        return inside if inside.exists() else HERE.parents[1] / "lessons" / self.name / "exercise.py"

    @property
    def solution(self) -> Path:
        return HERE / "solutions" / f"{self.name}.py"

    @property
    def exercises(self) -> list[Exercise]:
        return [exercise for exercise in exercises() if exercise.lesson.name == self.name]


@cache
def exercises() -> tuple[Exercise, ...]:
    """All of them, in order."""
    found = [exercise for path in (HERE / "texts").glob("*.md") for exercise in read_text(path)]
    return tuple(sorted(found, key=lambda exercise: exercise.order))


def lessons() -> list[Lesson]:
    return list(dict.fromkeys(exercise.lesson for exercise in exercises()))


def cards(address: str = "") -> list[Card]:
    """The lessons as a front page shows them; {name} in `address` stands for the name of one."""
    from minipage.trace.drawing.front import Card

    found = []
    for lesson in lessons():
        about = ", ".join(exercise.title for exercise in lesson.exercises) + "."
        command = "" if address else f"python -m minipage learn check {lesson.number}"
        found.append(Card(lesson.title, about, address.format(name=lesson.name), command, lesson.number))
    return found


def read_text(path: Path) -> list[Exercise]:
    head, *sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lesson = Lesson(path.stem, head.splitlines()[0].removeprefix("# "), field(head, "part"))
    found = []
    for section in sections:
        intro, *parts = re.split(r"^### ", section, flags=re.MULTILINE)
        number, title = intro.splitlines()[0].split(" ", 1)
        texts = [part.split("\n", 1) for part in parts]
        hints = tuple(text.strip("\n") for kind, text in texts if kind == "Hint")
        [why] = [text.strip("\n") for kind, text in texts if kind == "Why"]
        names, also = (tuple(field(intro, name).split()) for name in ("names", "also"))
        points, is_aside = int(field(intro, "points")), field(intro, "aside") == "yes"
        found.append(Exercise(number, title, names, points, hints, why, also, lesson, is_aside))
    return found


def field(text: str, name: str) -> str:
    match = re.search(rf"^{name}: (.*)$", text, flags=re.MULTILINE)
    return match[1].strip() if match else ""


def chosen(numbers: list[str]) -> list[Exercise]:
    """The exercises with these numbers, "3.2" for one and "3" for a lesson; all of them for none.

    Raises LearnError for a number that there is not.
    """
    found = []
    for number in numbers:
        those = [e for e in exercises() if number in (e.number, e.lesson.number, e.lesson.name)]
        if not those:
            last = exercises()[-1].lesson.number
            raise LearnError(
                f"there is no exercise {number!r}; exercises are numbered like 3.2, lessons like 3 (1 to {last}). "
                "`learn list` shows them."
            )
        found += those
    return sorted(set(found), key=lambda exercise: exercise.order) if numbers else list(exercises())
