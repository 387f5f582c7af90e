"""The story of a prefix that ends inside a block: the blocks before it are shared, and that one is copied."""

from __future__ import annotations

from minipage.trace.playing.cues import is_shared, step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import FRIENDS, JULIET, RICHARD
from minipage.trace.recording.frames import Frame


def begins_inside(frame: Frame) -> bool:
    return any("is copied to" in event and "The beginning of" in event for event in frame.events)


PARTIAL = Scenario(
    "partial-hit",
    "One changed word",
    "a text begins like another and goes on otherwise inside a block, of which it gets a copy",
    (Arrival(0, FRIENDS + RICHARD, 14), Arrival(3, FRIENDS + JULIET, 8), Arrival(2, FRIENDS + RICHARD, 6, after=1)),
    (
        Turn(
            step_is(1),
            "Here a block can be found by each of its beginnings, and not only when it is full.",
        ),
        Turn(
            begins_inside,
            "The same words, and then others, inside a block that its owner still writes into. The beginning is "
            "copied, and both go on, each in a block of its own.",
            "No text went on otherwise inside a block.",
        ),
        Turn(is_shared, "Whole blocks are shared as ever: nobody will write there."),
        Turn(
            lambda f: f.finished,
            "Done. Its last block is not full, and can be found all the same, as far as it is written.",
        ),
        Turn(
            lambda f: begins_inside(f) and any(seq.label == "C" and seq.num_computed_tokens for seq in f.sequences),
            "The first text once more: all of it is found, except the last token, whose logits are wanted.",
            "No text came a second time.",
        ),
    ),
    {"block_size": 16, "max_num_batched_tokens": 32, "enable_prefix_caching": True, "prefix_match_unit": 1},
    beginning=FRIENDS,
)
