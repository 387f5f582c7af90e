"""What one step will do: which blocks are copied, and then whose tokens are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from minipage.memory import BlockCopy
from minipage.scheduling.chunks import Chunk
from minipage.scheduling.group import SequenceGroup


@dataclass(slots=True)
class StepPlan:
    """Everything one step will do, in this order."""

    swap_out: list[BlockCopy] = field(default_factory=list)  # (block, swap block): saved before anything else
    swap_in: list[BlockCopy] = field(default_factory=list)  # (swap block, block)
    copies: list[BlockCopy] = field(default_factory=list)  # (block, block): copy-on-write, before anything is written
    chunks: list[Chunk] = field(default_factory=list)  # what to compute, in the order of the flat batch
    preempted: list[SequenceGroup] = field(default_factory=list)  # lost their blocks to make room
