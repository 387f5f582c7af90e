"""The story of a sliding window: the text goes on, and the blocks behind it come home."""

from __future__ import annotations

from minipage.trace.playing.cues import newly_used, step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import JULIET, RICHARD
from minipage.trace.recording.frames import Frame, SequenceFrame
from minipage.trace.recording.windows import held


def has_moved(frame: Frame) -> bool:
    """Whether a window has left a block behind in this step."""
    return any("has moved on" in event for event in frame.events)


def behind_the_window(seq: SequenceFrame) -> int:
    """How many blocks it has left behind."""
    return len(seq.blocks) - len(held(seq.blocks))


WINDOW = Scenario(
    "window",
    "The window moves on, and blocks come home",
    "each layer looks back 8 tokens only: what lies behind is given back while the text goes on",
    (Arrival(0, RICHARD, 28), Arrival(3, JULIET, 20)),
    (
        Turn(step_is(1), "This model looks back 8 tokens, and no further. Its tables begin as any other."),
        Turn(
            has_moved,
            "The window has moved on. Nobody will look at its first block again: it goes home, and a null block "
            "stands in its place, so that all others keep theirs.",
            "No block was left behind: the texts were too short for that, or the blocks too large.",
        ),
        Turn(
            lambda f: newly_used(f) and any(behind_the_window(seq) for seq in f.sequences),
            "One block behind is given back, one in front is taken: from now on the text takes no more memory.",
        ),
        Turn(
            lambda f: any(len(seq.tokens) > 24 for seq in f.sequences),
            "The text grows and grows, and holds as many blocks as before. Without a window it would hold all.",
        ),
    ),
    {"hf_overrides": {"sliding_window": 8}},
    num_slots=40,
)
