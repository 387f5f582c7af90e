"""What is new between two looks at an engine, as it is written into a trace."""

from __future__ import annotations

from typing import Any

from minipage.engine.request import Request
from minipage.engine.sampled import SampledRequest
from minipage.scheduling import Sequence
from minipage.trace.recording.text import num_common


class Seen:
    """A sequence as it was when last looked at."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.facts: dict[str, Any] = {"status": "waiting", "computed": 0, "preemptions": 0}
        self.blocks: list[int] = []
        self.more_blocks: list[list[int]] = []
        self.swap_blocks: list[int] = []

    def forget(self) -> None:
        """What was seen may never have been told: let everything be new."""
        self.num_tokens, self.facts = 0, dict.fromkeys(self.facts)
        self.blocks, self.more_blocks, self.swap_blocks = [-1], [[-1]], [-1]


def list_difference(old: list[Any], new: list[Any]) -> tuple[list[Any], list[Any]]:
    """([how many members of `old` stay, what follows them], a copy of `new`)."""
    keep = num_common(old, new)
    return [keep, new[keep:]], new.copy()


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two looks one after the other, of which the first saw newcomers only."""
    both = first | second
    if "sequences" in first and "sequences" in second:
        labels = first["sequences"] | second["sequences"]  # all of them, in order of arrival
        both["sequences"] = {
            label: first["sequences"].get(label, {}) | second["sequences"].get(label, {}) for label in labels
        }
    if "queues" in first:
        both["queues"] = first["queues"] | second.get("queues", {})
    return both


def reason(request: Request | None, seq: Sequence) -> str:
    """Why a sequence is finished."""
    if isinstance(request, SampledRequest):
        return request.texts[seq].finish_reason or "abort"
    if request is None:
        return "abort"
    return "the search is over" if request.finished else "beaten by other beams"
