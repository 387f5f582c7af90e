"""`make_batch` with a memory: mostly a step goes on with the sequences of the last one, a token each.

Then nearly everything follows from the last batch. Positions are one further, the slots follow from the block tables,
and a table has changed only if its sequence has just begun a block:

                    last step    this step
    token_ids       [ a6  b4 ]   [ a7  b5 ]    asked of each sequence
    positions       [  6   4 ]   [  7   5 ]    one further
    block_tables    [ 7 1    ]   [ 7 1    ]    blocks of 5 tokens: A is in its second,
                    [ 3      ]   [ 3 8    ]    and B begins one
    slot_mapping    [  6  19 ]   [  7  40 ]    block * 5 + position % 5
"""

from __future__ import annotations

import numpy as np

from minipage.attention.arguments import Integers
from minipage.batch import Batch, make_batch
from minipage.scheduling import Sequence, StepPlan


class Batches:
    """Makes the batch of every step, one after the other; of a pool with blocks of this size."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._seqs: tuple[Sequence, ...] = ()  # of the last step, if each of them had one token and chose the next
        self._last: Batch

    def make(self, plan: StepPlan) -> Batch:
        """The same as make_batch(plan.chunks)."""
        _, seqs, starts, nums_tokens = zip(*plan.chunks)
        goes_on = seqs == self._seqs and max(nums_tokens) == 1 and not plan.copies and not plan.swap_in
        positions = np.array(starts)  # [num_seqs]
        if goes_on and np.array_equal(positions, self._last.context_lens):
            self._last = self._next(seqs, positions)
        else:
            self._last = make_batch(plan.chunks)
            is_decode = len(self._last.token_ids) == len(seqs) == len(self._last.sampled_rows)
            # After a swap the prefix cache may exchange any of the blocks for one that it knows already.
            self._seqs = seqs if is_decode and not plan.swap_in else ()
        return self._last

    def _next(self, seqs: tuple[Sequence, ...], positions: Integers) -> Batch:
        tables = self._last.block_tables  # [num_seqs, max_blocks]
        for row in np.flatnonzero(positions % self.block_size == 0):
            table = list(seqs[row].block_table)
            if len(table) > tables.shape[1]:
                tables = np.pad(tables, ((0, 0), (0, 1)))  # [num_seqs, max_blocks + 1]
            tables[row, : len(table)] = table
        blocks = tables[np.arange(len(seqs)), positions // self.block_size]  # [num_seqs]
        return self._last._replace(
            token_ids=np.array([seq.token_ids[-1] for seq in seqs]),
            positions=positions,
            slot_mapping=blocks * self.block_size + positions % self.block_size,
            block_tables=tables,
            context_lens=(positions + 1).astype(np.int32),
        )
