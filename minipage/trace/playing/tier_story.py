"""The story of a tier below the pool: a text is evicted, found again, and comes back."""

from __future__ import annotations

from minipage.trace.playing.cues import step_is
from minipage.trace.playing.speculation_story import is_told
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import FRIENDS, RICHARD

TIER = Scenario(
    "offload",
    "Evicted, found again, came back",
    "a second memory below the pool: what others push out of it is kept by its hash, and comes back",
    (
        Arrival(0, FRIENDS + "All:\nSpeak", 4, {"temperature": 0}),
        Arrival(1, RICHARD + " for a horse, or for a kingdom; a kingdom, or a horse, or nothing at all", 8, after=0),
        Arrival(1, FRIENDS + "All:\nSpeak", 4, {"temperature": 0}, after=1),
    ),
    (
        Turn(step_is(1), "The pool is small, and keeps what a text has left behind until somebody needs its blocks."),
        Turn(
            is_told("saved in the tier"),
            "Somebody does. Without a tier these K and V would be lost; now they are copied, and kept by their hash.",
            "Nothing was evicted: the pool was never short of blocks.",
        ),
        Turn(
            is_told("comes back"),
            "The text is there once more. It is found in the tier, and copied into blocks that are free now: other "
            "ones than before, which only its table knows.",
            "Nobody asked for what was in the tier.",
        ),
        Turn(
            lambda f: any(seq.label == "C" and len(seq.tokens) > 24 for seq in f.sequences),
            "So it computes its last tokens only. What else it says is what it would have said anyway.",
        ),
    ),
    {"max_num_batched_tokens": 32, "enable_prefix_caching": True, "kv_offloading_size": 0.01},
    num_slots=40,
)
