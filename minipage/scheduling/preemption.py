"""Preemption: who gives way when the blocks run out, and where its K and V go meanwhile.

The policy orders those who run, and the last in this order is the `victim`. So the first is never preempted for
another, and finishes. What the victim has computed is lost, or saved:

    recompute    its blocks are free at once; later all its tokens are computed again
    swap         its blocks are copied to a second memory, the swap space, and back when there is room
    auto         swap groups of several sequences, whose recomputation is dear, and recompute the others

`preempt` and `_make_room` of scheduler.py carry it out. Section 4.5 of the PagedAttention paper (arXiv 2309.06180).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from minipage.scheduling.group import SequenceGroup

Preemption = Literal["recompute", "swap", "auto"]


def victim(running: Sequence[SequenceGroup]) -> SequenceGroup:
    """Who is preempted when the blocks run out: the last of those that run, in the order of the policy."""
    return running[-1]
