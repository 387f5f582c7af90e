"""Who has handed in what: the folders that were given, and the names on a list of the class.

submissions/alice/my-minipage/03_block_pool/exercise.py      a learner is the folder that was given: alice
submissions/bob/03_block_pool/exercise.py                    the lessons may lie one or two folders deeper
roster.csv: learner,submitted                                who is on it and has no folder is missing
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG

from minipage.errors import LearnError
from minipage.learn.course import Exercise, Lesson

DEPTH = 2  # folders between the one that was given and the lessons
BEFORE = datetime.min.replace(tzinfo=UTC)  # all that was handed in


@dataclass(frozen=True)
class Submission:
    learner: str
    folder: Path | None  # where the lessons are; None: there is nothing to grade
    note: str = ""  # why there is nothing, in a sentence
    handed_in: datetime | None = None  # when, as far as it is known
    is_late: bool = False

    @property
    def status(self) -> str:
        if self.folder is None:
            return "missing"
        return "late" if self.is_late else "graded"


def submissions(
    paths: list[Path], exercises: list[Exercise], roster: Path | None = None, due: datetime | None = None
) -> list[Submission]:
    """One for each path, and for each name on the roster that has none. Raises LearnError."""
    lessons = list(dict.fromkeys(exercise.lesson for exercise in exercises))
    names = learner_names(paths)
    times = read_roster(roster) if roster else {}
    found = [submission(path, name, lessons, times.get(name), due) for path, name in zip(paths, names)]
    missing = [name for name in times if name not in names]
    return found + [Submission(name, None, "there is no folder of this name") for name in missing]


def submission(
    path: Path, learner: str, lessons: list[Lesson], handed_in: datetime | None, due: datetime | None
) -> Submission:
    if not path.exists():
        return Submission(learner, None, f"{learner} is a link that leads nowhere")
    if not path.is_dir():
        return Submission(learner, None, f"{learner} is a file; only folders are graded, so unpack it")
    folder = where_lessons_are(path, lessons)
    if folder is None:
        names = " ".join(lesson.name for lesson in lessons[:3])
        return Submission(learner, None, f"none of the lessons' folders ({names} ...) is in it")
    handed_in = handed_in or last_change(folder, lessons)
    is_late = bool(due and handed_in and handed_in > due)
    return Submission(learner, folder, "", handed_in, is_late)


def learner_names(paths: list[Path]) -> list[str]:
    """The names of the folders; with the folder that they are in, where two are the same."""
    places = [Path(os.path.abspath(path)) for path in paths]  # a link keeps its own name, wherever it leads
    names = [printable(place.name) for place in places]
    twice = {name for name, times in Counter(names).items() if times > 1}
    if not twice:
        return names
    longer = [printable("/".join(place.parts[-2:])) if n in twice else n for place, n in zip(places, names)]
    return [name if longer.count(name) == 1 else printable(str(path)) for name, path in zip(longer, paths)]


def where_lessons_are(path: Path, lessons: list[Lesson]) -> Path | None:
    """The folder that the lessons' folders are in: this one, or one a little deeper; of several that with the most, and
    then the newest."""

    def how_full(folder: Path) -> tuple[int, datetime]:
        return count_lessons(folder, lessons), last_change(folder, lessons) or BEFORE

    candidates = [path]
    for _ in range(DEPTH + 1):
        found = [folder for folder in candidates if any(os.path.lexists(folder / lesson.name) for lesson in lessons)]
        if found:
            return max(found, key=how_full)
        candidates = [child for folder in candidates for child in folders_in(folder)]
    return None


def count_lessons(folder: Path, lessons: list[Lesson]) -> int:
    return sum((folder / lesson.name).exists() for lesson in lessons)


def folders_in(folder: Path) -> Iterator[Path]:
    """Real ones, not links, which could lead anywhere, and not what macOS and editors leave behind."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "__")):
            yield Path(entry.path)


def last_change(folder: Path, lessons: list[Lesson]) -> datetime | None:
    """When the newest exercise was written."""
    times = []
    for lesson in lessons:
        try:
            facts = os.lstat(folder / lesson.name / "exercise.py")
        except OSError:
            continue
        if S_ISREG(facts.st_mode):
            times.append(facts.st_mtime)
    return datetime.fromtimestamp(max(times)).astimezone() if times else None


def leads_outside(folder: Path, lesson: Lesson) -> bool:
    """Whether the exercise is a link to somewhere else: to another learner's, say."""
    path = folder / lesson.name / "exercise.py"
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a loop of links: whoever reads it will say so
        return False
    return path.exists() and not real.is_relative_to(folder.resolve())


def read_roster(path: Path) -> dict[str, datetime | None]:
    """Names, and when each handed in, if the file says so: CSV, with the columns learner and submitted or without."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row and row[0].strip()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LearnError(f"the roster {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    name_at, time_at = 0, 1
    if "learner" in head:
        name_at, time_at = head.index("learner"), head.index("submitted") if "submitted" in head else -1
        rows = rows[1:]
    return {
        printable(row[name_at].strip()): moment(row[time_at])
        if 0 < time_at < len(row) and row[time_at].strip()
        else None
        for row in rows
        if len(row) > name_at and row[name_at].strip()
    }


def moment(text: str) -> datetime:
    """A date and time as ISO 8601 has it, such as 2026-12-01T23:59; without a zone it is this machine's."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise LearnError(f"{text!r} is no time; write it like 2026-12-01T23:59 or 2026-12-01T23:59+01:00.") from None
    return found.astimezone()


def printable(name: str) -> str:
    """A name without what could not be shown or written: folders may be called anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
