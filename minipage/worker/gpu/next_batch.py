"""`make_batch` with a memory: usually a step continues the sequences of the last one, by one token each.

Then nearly everything follows from the last batch. Positions are one further, the slots follow from the block tables,
and only a few tables have changed: where a block was begun, copied on write, or exchanged by the prefix cache.

                    last step     this step
    token_ids       [ a6  b4 ]    [ a7  b5 ]    asked of each sequence
    positions       [  6   4 ]    [  7   5 ]    one further
    block_tables    [ 7 2    ]    [ 7 2    ]    blocks of 5 tokens: A is in its second,
                    [ 3      ]    [ 3 8    ]    and B begins one
    slot_mapping    [ 11  19 ]    [ 12  40 ]    block * 5 + position % 5
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minipage.memory import BlockTable
from minipage.scheduling import Chunk
from minipage.scheduling import Sequence as TokenSequence
from minipage.simd.arrays import Integers
from minipage.worker.batch import Batch, make_batch


class Batches:
    """Makes the batch of every step, one after the other; of a pool with blocks of this size."""

    def __init__(self, block_size: int, part: int | None = None) -> None:
        self.block_size = block_size
        self.part = part
        # Of the last step, if the next can follow from it: each sequence had one token, and was given the next.
        self._seqs: list[TokenSequence] = []
        self._tables: list[list[int]] = []
        self._last: Batch

    def make(self, chunks: Sequence[Chunk]) -> Batch:
        """The same as make_batch(chunks, part)."""
        seqs = [chunk.seq for chunk in chunks]
        positions = np.array([chunk.start for chunk in chunks])  # [num_seqs]
        continues = seqs == self._seqs and sum([chunk.num_tokens for chunk in chunks]) == len(seqs)
        if continues and np.array_equal(positions, self._last.context_lens):
            self._last = self._next(positions)
        else:
            self._last = make_batch(chunks, self.part)
            are_decodes = len(self._last.token_ids) == len(seqs) and all(chunk.receivers for chunk in chunks)
            are_ours = all(
                type(seq.block_table) is BlockTable for seq in seqs
            )  # other tables may have rules of their own
            self._seqs = seqs if are_decodes and are_ours else []
            self._tables = [seq.block_table.blocks.copy() for seq in self._seqs]
        return self._last

    def _next(self, positions: Integers) -> Batch:
        """The batch of the same sequences at these positions [num_seqs]."""
        tables = self._last.block_tables  # [num_seqs, max_blocks]
        new = [seq.block_table.blocks for seq in self._seqs]
        for row in [row for row, known in enumerate(self._tables) if new[row] != known] if new != self._tables else ():
            blocks = self._tables[row] = new[row].copy()
            if len(blocks) > tables.shape[1]:
                tables = np.pad(tables, ((0, 0), (0, len(blocks) - tables.shape[1])))  # [num_seqs, len(blocks)]
            tables[row, : len(blocks)] = blocks
        block = tables[np.arange(len(tables)), positions // self.block_size]  # [num_seqs]
        return self._last._replace(
            token_ids=np.array([seq.token_ids[-1] for seq in self._seqs]),
            positions=positions,
            slot_mapping=block * self.block_size + positions % self.block_size,
            block_tables=tables,
            context_lens=(positions + 1).astype(np.int32),
        )
