"""The story of admission: a prompt that comes in by its first chunk loses what it has computed."""

from __future__ import annotations

from minipage.trace.playing.cues import is_back, is_cut, step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import FRIENDS, JULIET, RICHARD

ADMISSION = Scenario(
    "admission",
    "In with one foot",
    "a prompt is let in by its first chunk, before all of it fits",
    (Arrival(0, FRIENDS + RICHARD, 16), Arrival(1, FRIENDS + JULIET + FRIENDS, 6)),
    (
        Turn(step_is(1), "A prompt is computed in chunks. Must all of it find room before it may begin?"),
        Turn(
            lambda f: len(f.running) > 1 and is_cut(f),
            "Here not: the second comes in as soon as there is room for its first chunk.",
            "Nobody came in by a first chunk.",
        ),
        Turn(
            lambda f: f.preempted or f.ahead.gives_way,
            "The rest of it finds no room. It is the last in line, and loses what it has computed.",
            "Nobody had to give way: there was always a free block.",
        ),
        Turn(
            is_back,
            "It comes back, and computes the same tokens once more. Had it waited until all of its prompt fits (the "
            "default; --scheduler-reserve-full-isl), nothing would be computed twice.",
        ),
    ),
    {"scheduler_reserve_full_isl": False},
    room=0.75,
    runs_dry=True,
)
