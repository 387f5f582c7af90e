"""What one step will do: whose tokens it computes, and which blocks are copied before that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from minipage.memory import BlockCopy

if TYPE_CHECKING:
    from minipage.scheduling.group import SequenceGroup
    from minipage.scheduling.sequence import Sequence


@dataclass(slots=True)  # not frozen: every step makes one for each sequence, and that would take four times as long
class Chunk:
    """The part of one sequence that a step computes: its tokens `start` to `start + num_tokens - 1`."""

    group: SequenceGroup
    seq: Sequence
    start: int  # = tokens computed before this step
    num_tokens: int

    @property
    def token_ids(self) -> list[int]:
        return self.seq.token_ids[self.start : self.start + self.num_tokens]

    @property
    def receivers(self) -> list[Sequence]:
        """The sequences that are given their next token from the logits of this chunk's last token."""
        if self.start + self.num_tokens < len(self.seq.token_ids):
            return []
        return list(self.group.sequences) if self.group.is_sharing else [self.seq]

    @property
    def scored(self) -> range:
        """Which of its positions have logits that tell how likely the prompt's next token is, if that is asked for."""
        wanted = self.group.unscored
        return range(max(self.start, wanted.start), min(self.start + self.num_tokens, wanted.stop))

    @property
    def positions_with_logits(self) -> list[int]:
        """Those that are scored, and the last one, if somebody receives a token from it."""
        scored = [*self.scored] if self.group.unscored else []
        return [*scored, self.start + self.num_tokens - 1] if self.receivers else scored


@dataclass(slots=True)
class StepPlan:
    """Everything one step will do, in this order."""

    swap_out: list[BlockCopy] = field(default_factory=list)  # (block, swap block): saved before anything else
    swap_in: list[BlockCopy] = field(default_factory=list)  # (swap block, block)
    copies: list[BlockCopy] = field(default_factory=list)  # (block, block): copy-on-write, before anything is written
    chunks: list[Chunk] = field(default_factory=list)  # what to compute, in the order of the flat batch
    preempted: list[SequenceGroup] = field(default_factory=list)  # lost their blocks to make room


def count_tokens(chunks: list[Chunk]) -> int:
    if len(chunks) == 1:  # nearly always, and asked for every group at every step
        return chunks[0].num_tokens
    return sum(chunk.num_tokens for chunk in chunks)


def blocks_for(chunks: list[Chunk]) -> int:
    """How many free blocks the chunks of one group take.

    Of the sequences that write into one shared block each gets a copy; but if nobody else holds it, the last of them
    writes in place.
    """
    if len(chunks) == 1:  # nearly always
        return chunks[0].seq.block_table.blocks_to_allocate(chunks[0].num_tokens)
    tables = [chunk.seq.block_table for chunk in chunks]
    needed = sum(table.blocks_to_allocate(chunk.num_tokens) for table, chunk in zip(tables, chunks))
    writers = Counter(tail for table in tables if (tail := table.shared_tail()) is not None)
    in_place = sum(tables[0].pool.ref_count(block) == num_writers for block, num_writers in writers.items())
    return needed - in_place * max((chunk.group.num_tables for chunk in chunks), default=0)  # all its tables do alike
