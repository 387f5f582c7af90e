"""Sequence groups of a model with several KV cache groups, or with a window: how many blocks they take.

A sequence has a block table for each KV cache group (memory/kv_groups.py; not to be confused with the group of
sequences that this file is about). In a full one it holds its whole text, in one with a window what the window reaches
and what a step adds, however long the text becomes.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import partial
from typing import ClassVar, cast

from minipage.memory.kv_groups import EVERYTHING, GroupTables, blocks_held
from minipage.scheduling.chunks import Chunk
from minipage.scheduling.group import SequenceGroup


class WindowedGroup(SequenceGroup):
    """A SequenceGroup whose sequences have `GroupTables`; `of` makes the class for a model."""

    windows: ClassVar[tuple[int, ...]]  # of each KV cache group
    most_at_once: ClassVar[int]  # tokens of a sequence that a step computes

    @classmethod
    def of(cls, windows: tuple[int, ...], most_at_once: int) -> type[WindowedGroup]:
        attributes = {"windows": windows, "most_at_once": most_at_once, "num_tables": len(windows)}
        return type(cls.__name__, (cls,), attributes)

    def next_chunks(self, budget: int) -> list[Chunk]:
        """First the windows move on, and what lies behind them goes back to the pool."""
        for seq in self.sequences:
            for part in cast(GroupTables, seq.block_table).parts:
                part.slide()
        return super().next_chunks(budget)

    def max_blocks(self, block_size: int) -> int:
        return self._most(self.leader.num_prompt_tokens, self.max_num_seqs, block_size, self.max_num_tokens - 1)

    def blocks_to_start(self, block_size: int) -> int:
        longest = max(len(seq.token_ids) for seq in self.sequences)
        num_tables = 1 if self.shared_len == len(self.leader.token_ids) else len(self.sequences)
        return self._most(self.shared_len, num_tables, block_size, longest)

    @classmethod
    def longest_that_fits(cls, num_prompt_tokens: int, max_num_seqs: int, num_blocks: int, block_size: int) -> int:
        most = partial(cls._most, num_prompt_tokens, max_num_seqs, block_size)  # blocks, by the number of tokens
        # The first length that takes too many blocks: one more than can be stored, and the last token never is.
        return bisect_right(range(EVERYTHING), num_blocks, key=most)

    @classmethod
    def _most(cls, num_shared_tokens: int, num_seqs: int, block_size: int, num_tokens: int) -> int:
        """Blocks of sequences of `num_tokens`, which share the full blocks of their beginning where nothing slides."""
        whole = [blocks_held(num_tokens, window, block_size, cls.most_at_once) for window in cls.windows]
        shared = cls.windows.count(EVERYTHING) * (num_shared_tokens // block_size)
        return num_seqs * (sum(whole) - shared) + shared
