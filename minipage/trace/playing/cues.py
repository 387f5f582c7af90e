"""What a story waits for before it says a sentence: things to be seen in a frame."""

from __future__ import annotations

from collections.abc import Callable

from minipage.trace.recording.frames import Frame, occupied


def step_is(number: int) -> Callable[[Frame], bool]:
    return lambda frame: frame.step >= number


def newly_used(frame: Frame) -> bool:
    return any("needs a block" in event or "need a block each" in event for event in frame.events)


def is_shared(frame: Frame) -> bool:
    return any(block.ref_count > 1 for _, block in occupied(frame.blocks))


def gave_way(frame: Frame) -> bool:
    """Whether somebody who lost its blocks is waiting now."""
    return any(seq.num_preemptions and seq.status == "waiting" for seq in frame.sequences)


def is_back(frame: Frame) -> bool:
    return any(" back: " in event for event in frame.events)


def is_cut(frame: Frame) -> bool:
    """Whether this step computes a part of a prompt, and not the end of it."""
    lengths = {seq.label: seq.num_prompt_tokens for seq in frame.sequences}
    return any(chunk.start + chunk.num_tokens < lengths[chunk.label] for chunk in frame.chunks)


def is_full(index: int) -> Callable[[Frame], bool]:
    """Whether somebody has to wait in a contiguous memory."""
    return lambda frame: bool(frame.contiguous[index].waiting)
