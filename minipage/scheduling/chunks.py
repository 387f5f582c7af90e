"""Chunks: which part of each sequence a step computes, how large it is, and how many blocks that takes.

    prompt of 10 tokens, budget of 4     [ = = = = | = = = = | = = ]     three steps, of 4, 4 and 2 tokens
    a text that goes on                  [ = = = = = = = = = = ] =       one token, at each step

`next_chunks` sizes them; a SequenceGroup has it as a method.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    def rows(self) -> list[tuple[int, list[Sequence]]]:
        """The rows of logits that it needs: for each, its position and the sequences that receive a token from it.

        Nobody receives one from a position that is scored: it tells how likely the prompt's next token is.
        """
        rows: list[tuple[int, list[Sequence]]] = []
        stop = self.start + self.num_tokens
        if to_score := self.group.to_score:  # usually nothing
            rows = [(position, []) for position in range(max(self.start, to_score.start), min(stop, to_score.stop))]
        if receivers := self.receivers:
            rows.append((stop - 1, receivers))
        return rows


def next_chunks(group: SequenceGroup, budget: int) -> list[Chunk]:
    """What a group computes next with at most `budget` tokens; nothing unless every sequence can go on."""
    if group.is_sharing:
        wanted = [(group.leader, group.shared_len - group.leader.num_computed_tokens)]
    elif len(group.sequences) == 1:  # nearly all chunks come from here, so it is kept short
        [seq] = group.sequences
        return [Chunk(group, seq, seq.block_table.num_tokens, 1)] if budget else []
    elif behind := [seq for seq in group.sequences if seq.num_uncomputed_tokens > 1]:  # after a recomputation
        # All but the last token: with that one they all draw their next token, and in the same step.
        wanted = [(seq, seq.num_uncomputed_tokens - 1) for seq in behind]
    else:
        wanted = [(seq, 1) for seq in group.sequences] if len(group.sequences) <= budget else []
    chunks = []
    for seq, num_tokens in wanted:
        if size := min(num_tokens, budget):
            chunks.append(Chunk(group, seq, seq.num_computed_tokens, size))
            budget -= size
    return chunks


def count_tokens(chunks: list[Chunk]) -> int:
    if len(chunks) == 1:  # nearly always, and asked for every group at every step
        return chunks[0].num_tokens
    return sum(chunk.num_tokens for chunk in chunks)


def blocks_for(chunks: list[Chunk]) -> int:
    """How many free blocks the chunks of one group take.

    Sequences that write into one shared block get a copy each, except the last of them, which writes in place if nobody
    else holds the block.
    """
    if len(chunks) == 1:  # nearly always
        return chunks[0].seq.block_table.blocks_to_allocate(chunks[0].num_tokens)
    tables = [chunk.seq.block_table for chunk in chunks]
    needed = sum(table.blocks_to_allocate(chunk.num_tokens) for table, chunk in zip(tables, chunks))
    writers = Counter(tail for table in tables if (tail := table.shared_tail()) is not None)
    in_place = sum(tables[0].pool.ref_count(block) == num_writers for block, num_writers in writers.items())
    return needed - in_place * max((chunk.group.num_tables for chunk in chunks), default=0)  # in each of its tables
