"""Grades as rows: for a spreadsheet (CSV) and for programs (JSON)."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from minipage.learn.classroom.folders import printable
from minipage.learn.classroom.grade import Graded
from minipage.learn.classroom.similar import Alike, ranges
from minipage.learn.course import Exercise
from minipage.learn.judge import PASSED, Verdict

FORMULA = "=+-@\t\r"  # with these a spreadsheet takes a text for a formula, and computes it


def exercise_row(exercise: Exercise, verdict: Verdict) -> dict[str, Any]:
    return {
        "exercise": exercise.number,
        "title": exercise.title,
        "status": verdict.status,
        "points": exercise.points if verdict.status == PASSED else 0,
        "max_points": exercise.points,
        "file": f"{exercise.lesson.name}/exercise.py",
        "line": verdict.line,
        "message": verdict.message,
        "calls": verdict.calls,
        "expected": verdict.expected,
        "got": verdict.got,
        "picture": verdict.picture,
    }


def folder_row(graded: Graded, exercises: list[Exercise], alike: list[Alike]) -> dict[str, Any]:
    submission = graded.submission
    return {
        "learner": submission.learner,
        "folder": str(submission.folder or ""),
        "status": submission.status,
        "handed_in": submission.handed_in.isoformat(timespec="seconds") if submission.handed_in else None,
        "points": graded.points(exercises),
        "max_points": sum(exercise.points for exercise in exercises),
        "note": submission.note,
        "similar": [each.sentence for each in alike if submission.learner in each.learners],
        "exercises": [exercise_row(e, v) for e, v in zip(exercises, graded.verdicts)],
    }


def alike_row(each: Alike) -> dict[str, Any]:
    return {
        "lesson": each.lesson,
        "learners": list(each.learners),
        "same": each.is_same,
        "share": round(each.share, 3),
        "lines": [list(pair) for pair in each.lines],
        "lines_of_the_other": [list(pair) for pair in each.others],
        "sentence": each.sentence,
    }


def write_csv(path: Path, results: list[Graded], exercises: list[Exercise], alike: list[Alike]) -> None:
    """A row for each learner, a column for each exercise; OSError."""
    head = ["learner", "status", "points", "max_points", "handed_in", "similar", "note", "folder"]
    most = sum(exercise.points for exercise in exercises)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*head, *(exercise.number for exercise in exercises)])
        for graded in results:
            it = graded.submission
            passed = {verdict.number for verdict in graded.verdicts if verdict.status == PASSED}
            facts = [
                it.learner, it.status, graded.points(exercises), most,
                it.handed_in.isoformat(timespec="seconds") if it.handed_in else "",
                " ".join(in_short(each, it.learner) for each in alike if it.learner in each.learners),
                it.note, printable(str(it.folder or "")),
            ]  # fmt: skip
            points = [e.points * (e.number in passed) if graded.verdicts else "" for e in exercises]
            writer.writerow([harmless(fact) for fact in facts] + points)


def in_short(each: Alike, learner: str) -> str:
    """The others, where, and how much; the JSON and the pages have it all."""
    others = [name for name in each.learners if name != learner]
    names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
    return f"{each.lesson[:2]}: {each.share:.0%} {names} (lines {ranges(each.lines)});"


def harmless(fact: Any) -> Any:
    """Whoever calls their folder =HYPERLINK(...) gets that as a text in the instructor's spreadsheet."""
    return f"'{fact}" if isinstance(fact, str) and fact.startswith(tuple(FORMULA)) else fact
