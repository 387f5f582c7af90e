"""The story of an order of eviction: what was found again outlives texts that come once."""

from __future__ import annotations

from minipage.trace.playing.cues import step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import FRIENDS, JULIET, RICHARD
from minipage.trace.recording.frames import Frame


def hits(frame: Frame) -> int:
    """Who has found its beginning in the prefix cache in this step."""
    return sum("in the prefix cache" in event for event in frame.events)


EVICTION = Scenario(
    "eviction",
    "What was asked for twice",
    "texts come once and pass through the pool; what was found before them is found again after them",
    (
        Arrival(0, FRIENDS + "All:\nSpeak", 2),
        Arrival(1, FRIENDS + RICHARD, 2, after=0),
        Arrival(1, "To be, or not to be, that is the question:\nWhether", 4, after=1),
        Arrival(1, "ROMEO:\nO, she doth teach the torches to burn bright!", 4, after=2),
        Arrival(1, FRIENDS + JULIET, 2, after=3),
    ),
    (
        Turn(step_is(1), "Free blocks keep what they hold until they are handed out. Which of them goes first?"),
        Turn(
            hits,
            "This beginning was asked for before, and is found: these blocks go behind all that was never found.",
            "No beginning was found.",
        ),
        Turn(
            lambda f: any(label == "D" for label in f.running),
            "Texts that come once pass through. With eviction=lru the second of them would take the blocks that were "
            "found, too, because they were freed before the first one's.",
        ),
        Turn(
            lambda f: hits(f) and f.all_sequences[-1].label == "E",
            "The beginning comes a third time, and is still there. (LRU has to compute it anew: --eviction lru.)",
            "The third time nothing was found.",
        ),
    ),
    {"max_num_batched_tokens": 16, "enable_prefix_caching": True, "eviction": "scan-resistant"},
    num_slots=40,
)
