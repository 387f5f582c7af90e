"""A sheet of questions: twenty that are drawn (questions.py, steps.py), ten from a recorded run (frames.py)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

NUM_FRAMES = 10  # questions of the thirty that ask for the next step


@dataclass(frozen=True)
class Question:
    text: str  # Markdown
    answer: str  # what the engine says
    source: str  # where it is explained
    is_frame: bool = False  # asks what the next step does


def joined(numbers: Iterable[object]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def quiz(seed: str = "") -> list[Question]:
    """Thirty questions; the same ones for the same seed."""
    from minipage.learn.quiz.frames import frame_questions
    from minipage.learn.quiz.questions import KINDS

    drawn = [kind(random.Random(f"{seed}/{kind.__name__}")) for kind in KINDS]
    return drawn + frame_questions(random.Random(f"{seed}/frames"), NUM_FRAMES)


def as_markdown(questions: list[Question], title: str, with_answers: bool) -> str:
    lines = [f"# {title}", ""]
    for number, question in enumerate(questions, 1):
        lines += [f"**{number}.** {question.text}", ""]
        if with_answers:
            lines += [f"> **{question.answer}**", ">", f"> {question.source}", ""]
    return "\n".join(lines)
