"""The story of one attention call: a query meets block after block."""

from __future__ import annotations

from minipage.trace.playing.cues import step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import JULIET, RICHARD
from minipage.trace.recording.attention_walk import Walk

KERNEL = Scenario(
    "kernel",
    "Inside one attention call",
    "the query of one token meets block after block: scores, maximum, sum and output",
    (Arrival(0, RICHARD, 6), Arrival(1, JULIET, 6)),
    (
        Turn(step_is(1), "Texts in one pool. After a few steps we look into the kernel, at a single query."),
        Turn(
            lambda f: f.attention,
            "The newest token has a query. Each word in the first block answers with a score: how well it fits.",
        ),
        Turn(
            lambda f: f.attention and any(step.shrink < 1 for step in f.attention.steps[1:]),
            "A higher score: what was summed before is shrunk to the new maximum. No second pass is needed.",
        ),
        Turn(
            lambda f: f.attention and len(f.attention.steps) > 2,
            "The next block may be anywhere. Three things are kept, however long the text: maximum, sum, output.",
        ),
        Turn(
            lambda f: f.attention and f.attention.kernel,
            "The same numbers as the kernel's. No row of scores was ever stored, and no block was moved.",
        ),
    ),
    {"max_num_batched_tokens": 16},
    room=2.28,
    beside=Walk,
)
