"""For cells of notebooks: `check("3.1")` judges exercise.py beside the notebook, and raises what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from minipage.learn.check import LIMIT, Keeper
from minipage.learn.course import chosen
from minipage.learn.judge import PASSED


def check(number: str, folder: str | Path = ".", limit: float = LIMIT) -> None:
    """Raise AssertionError, with a sentence and what shows it, unless the exercise is solved in `folder`."""
    [exercise] = chosen([number])
    with Keeper() as keeper:
        verdict, _ = keeper.judged(exercise, (Path(folder) / "exercise.py").absolute(), limit)
    if verdict.status != PASSED:
        calls = "".join(f"\n    {call}" for call in verdict.calls)
        values = f"\nexpected {verdict.expected}, but got {verdict.got}." if verdict.expected or verdict.got else ""
        raise AssertionError(f"{number}: {verdict.message}{calls}{values}")
    print(f"{number} {exercise.title}: passed")
