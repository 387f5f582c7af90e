"""What services want to be told: Gradescope's results.json.

https://gradescope-autograders.readthedocs.io/en/latest/specs/#output-format says which keys there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minipage.learn.judge import PASSED


def gradescope(rows: list[dict[str, Any]], note: str) -> dict[str, Any]:
    """A test for each exercise, with all that the learner should see."""
    return {
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "extra_data": {"note": note},  # for the instructor
        "tests": [
            {
                "number": row["exercise"],
                "name": row["title"],
                "score": row["points"],
                "max_score": row["max_points"],
                "status": "passed" if row["status"] == PASSED else "failed",
                "output": in_words(row),
                "output_format": "text",
                "visibility": "visible",
            }
            for row in rows
        ],
    }


def in_words(row: dict[str, Any]) -> str:
    """The verdict as lines of text."""
    parts = [row["message"] or row["status"]]
    if row["line"]:
        parts[0] += f" ({row['file']}, line {row['line']})"
    if row["calls"]:
        parts.append("The smallest case that shows it:\n" + "\n".join(row["calls"]))
    if row["expected"] or row["got"]:
        parts.append(f"expected  {row['expected']}\nbut got   {row['got']}")
    if row["picture"]:
        parts.append("The pool after that:\n" + "\n".join(row["picture"]))
    return "\n\n".join(parts)


RESULTS: dict[str, Callable[[list[dict[str, Any]], str], dict[str, Any]]] = {"gradescope": gradescope}
