"""`learn grade`: one folder, or a class of them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipage.errors import LearnError, count

if TYPE_CHECKING:
    from minipage.learn.classroom.grade import Graded
    from minipage.learn.classroom.similar import Alike
    from minipage.learn.course import Exercise

NUMBER = re.compile(r"\d{1,2}(\.\d{1,2})?")
SERVICES = "gradescope", "github", "nbgrader", "container"  # export.py has them


def add_grade(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "folders", nargs="+", metavar="DIR", help="learners' folders; then exercises or lessons (default: all)"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")
    sub.add_argument("--csv", metavar="FILE", help="write a row for each learner")
    sub.add_argument("--pages", metavar="DIR", help="write a page for each learner (default: beside --csv)")
    sub.add_argument("--roster", metavar="FILE", help="CSV with the learners' names: who has no folder is missing")
    sub.add_argument("--due", metavar="TIME", help="such as 2026-12-01T23:59: what was written later is late")
    sub.add_argument(
        "--folder-limit", type=float, default=900.0, metavar="S", help="seconds for a folder (default 900)"
    )
    sub.add_argument("--jobs", type=int, metavar="N", help="folders at a time (default: as many as there are cores)")
    sub.add_argument("--again", action="store_true", help="grade anew what an earlier run has graded")
    sub.add_argument("--format", choices=["gradescope"], help="print one folder's result as a service wants it")


def add_export(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("service", choices=SERVICES, metavar="SERVICE", help=", ".join(SERVICES))
    sub.add_argument("folder", metavar="DIR", help="a new folder")
    sub.add_argument("exercises", nargs="*", metavar="N", help="exercises or lessons (default: all)")
    sub.add_argument(
        "--source",
        default="minipage[learn]",
        metavar="SPEC",
        help="what pip installs on GitHub, such as git+https://...",
    )


def export(args: argparse.Namespace) -> int:
    from minipage.learn.classroom.export import export
    from minipage.learn.course import chosen

    for path in export(args.service, Path(args.folder), chosen(args.exercises), args.source):
        print(f"wrote {path}")
    print(NEXT[args.service].format(folder=args.folder))
    return 0


NEXT = {
    "gradescope": "Now: cd {folder} && zip -r ../autograder.zip . and upload that as the autograder.",
    "github": "Now: make a template repository of {folder}, and an assignment of GitHub Classroom with it.",
    "nbgrader": "Now: cd {folder} && nbgrader generate_assignment 03_block_pool, say.",
    "container": "Now: cd {folder} && podman build -t minipage-grader . and ./grade-all.sh SUBMISSIONS RESULTS.",
}


def grade(args: argparse.Namespace) -> int:
    from minipage.learn.classroom.folders import moment, submissions
    from minipage.learn.classroom.grade import Grader, Journal
    from minipage.learn.classroom.similar import alike
    from minipage.learn.course import chosen

    paths, numbers = folders_and_numbers(args.folders)
    for path in paths:
        if not os.path.lexists(path) or (len(paths) == 1 and not path.is_dir()):
            raise LearnError(f"there is no folder {path}.")
    if args.folder_limit <= 0 or (args.jobs is not None and args.jobs < 1):
        raise LearnError("--folder-limit must be more than 0 seconds, and --jobs at least 1.")
    if args.format and len(paths) > 1:
        raise LearnError("--format is for one folder, as a service grades them; of many, --json tells all.")
    exercises = chosen(numbers)
    roster, due = Path(args.roster) if args.roster else None, moment(args.due) if args.due else None
    found = submissions(paths, exercises, roster, due)
    require_places(args, paths)
    jobs = args.jobs or os.cpu_count() or 1
    if len(paths) == 1 and not paths_are_a_class(args):
        return grade_one(paths[0], exercises, args)
    grader = Grader(exercises, args.time_limit, args.folder_limit, jobs)
    journal = Journal(journal_of(args), grader.common)
    if args.again:
        journal.known.clear()
    try:
        with progress(len(found), "folders") as advance:
            results = grader.grade(found, journal, lambda graded: advance())
    except KeyboardInterrupt:
        if journal.path:
            print("Stopped. The same command goes on from here.", file=sys.stderr)
        raise
    with_folder = {it.learner: it.folder for it in found if it.folder}
    similar = alike(with_folder, list(dict.fromkeys(exercise.lesson for exercise in exercises)))
    report(args, results, exercises, similar)
    return 0


def paths_are_a_class(args: argparse.Namespace) -> bool:
    return bool(args.csv or args.pages or args.roster or args.due)


def folders_and_numbers(words: list[str]) -> tuple[list[Path], list[str]]:
    """`submissions/* 3 4.1`: the folders, and then the exercises. The first is a folder whatever it is called."""
    first, *others = words
    numbers = [word for word in others if NUMBER.fullmatch(word) and not Path(word).is_dir()]
    return [Path(first), *(Path(word) for word in others if word not in numbers)], numbers


def pages_of(args: argparse.Namespace) -> Path | None:
    """The folder for the pages: beside the CSV file, where nothing else is said."""
    if args.pages or not args.csv:
        return Path(args.pages) if args.pages else None
    beside = Path(args.csv).with_suffix("")
    return beside if beside != Path(args.csv) else beside.with_name(f"{beside.name}-pages")


def require_places(args: argparse.Namespace, learners: list[Path]) -> None:
    """What is going to be written can be: said before hours of grading, not after. Raises LearnError."""
    if args.csv:
        require_writable(Path(args.csv), is_folder=False)
    if pages := pages_of(args):
        require_writable(pages, is_folder=True)
        if pages.absolute() in {path.absolute().parent for path in learners}:
            raise LearnError(f"the pages would come among the learners' folders in {pages}; give another --pages.")


def require_writable(place: Path, is_folder: bool) -> None:
    parent = place.absolute().parent
    if not parent.is_dir():
        raise LearnError(f"{place} cannot be written: there is no folder {parent}.")
    if place.exists() and place.is_dir() != is_folder:
        what, due = ("a file", "folder for the pages (--pages)") if is_folder else ("a folder", "file")
        raise LearnError(f"{place} is {what}; give the name of a {due}.")
    if not os.access(place if place.exists() else parent, os.W_OK):
        raise LearnError(f"{place} cannot be written: you have no right to write there.")


def journal_of(args: argparse.Namespace) -> Path | None:
    """Where a run notes what is done: beside what it writes, so that the same command goes on from there."""
    if args.csv:
        return Path(args.csv).with_name(Path(args.csv).name + ".journal")
    return Path(args.pages).with_name(Path(args.pages).name + ".journal") if args.pages else None


def report(args: argparse.Namespace, results: list[Graded], exercises: list[Exercise], similar: list[Alike]) -> None:
    from minipage.learn.classroom.pages import write_pages
    from minipage.learn.classroom.tables import alike_row, folder_row, write_csv

    written: list[str] = []
    pages = pages_of(args)
    if args.csv:
        write_csv(Path(args.csv), results, exercises, similar)
        written.append(args.csv)
    if pages is not None:
        write_pages(pages, results, exercises, similar)
        written.append(str(pages / "index.html"))
    rows = [folder_row(graded, exercises, similar) for graded in results]
    if args.json:
        most = sum(exercise.points for exercise in exercises)
        facts = {"max_points": most, "note": note(), "folders": rows, "similar": [alike_row(each) for each in similar]}
        print(json.dumps(facts, indent=1))
    else:
        print_rows(rows, similar)
    for name in written:
        print(f"wrote {name}", file=sys.stderr)


def print_rows(rows: list[dict[str, Any]], similar: list[Alike]) -> None:
    from minipage.learn.screen import Screen

    screen = Screen()
    wide = min(40, max(len(row["learner"]) for row in rows))
    for row in rows:
        screen.line(
            f"{row['learner']:<{wide}}  {row['status']:<8}{row['points']:>4} of {row['max_points']}  {row['note']}"
        )
    if similar:
        screen.line()
        screen.line(f"Alike in {count(len(similar), 'place')}; those that are most alike:")
        for each in similar[:10]:
            screen.paragraph(each.sentence)
    if said := note():
        screen.line()
        screen.paragraph(said, indent="", style="dim")


def grade_one(folder: Path, exercises: list[Exercise], args: argparse.Namespace) -> int:
    """Points of all exercises in a folder. What is missing there has 0."""
    from minipage.learn.check import check_all
    from minipage.learn.classroom.folders import where_lessons_are
    from minipage.learn.classroom.tables import exercise_row
    from minipage.learn.screen import Screen

    lessons = list(dict.fromkeys(exercise.lesson for exercise in exercises))
    where = where_lessons_are(folder, lessons)
    with progress(len(exercises), "exercises") as advance:
        verdicts = check_all(exercises, where or folder, args.time_limit, advance)
    rows = [exercise_row(exercise, verdict) for exercise, verdict in zip(exercises, verdicts, strict=True)]
    notes = [note()]
    if where is None:
        names = f"{exercises[0].lesson.name}/exercise.py and so on"
        notes.append(f"None of these exercises is in {folder}: is it the right folder? They are looked for as {names}.")
    said = " ".join(filter(None, notes))
    points, most = sum(r["points"] for r in rows), sum(r["max_points"] for r in rows)
    if args.format:
        from minipage.learn.classroom import services

        print(json.dumps(services.RESULTS[args.format](rows, said), indent=1))
    elif args.json:
        facts = {"folder": str(folder), "points": points, "max_points": most, "note": said, "exercises": rows}
        print(json.dumps(facts, indent=1))
    else:
        screen = Screen()
        for r in rows:
            screen.status(r["status"], f"{r['exercise']:>5} {r['title']:<36} {r['points']} of {r['max_points']}")
        screen.line(f"{points} of {most} points")
        if said:
            screen.line()
            screen.paragraph(said, indent="", style="dim")
    return 0


def note() -> str:
    """What whoever grades strangers should know."""
    if not hasattr(os, "fork"):
        return (
            "On this system exercises are not kept apart from the program that grades them: use Linux for strangers'."
        )
    if os.geteuid() == 0:
        return (
            "This ran as root. minipage keeps exercises from what Python can do; for strangers' code use a "
            "container and another user, who cannot write to minipage (INSTRUCTORS.md)."
        )
    return ""


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], object]]:
    """A bar on standard error, where somebody watches; yields a function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), what, TimeElapsedColumn(), "left", TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("", total=total)
        yield lambda: shown.advance(task)
