"""The page table of one sequence: which physical block holds which of its tokens.

Token `i` of a sequence lives in logical block `i // block_size`, at offset `i % block_size`. The table says which
physical block that is, so a sequence can grow block by block, anywhere in the pool, and never moves:

    tokens           To be or not | to be that i | s the
    logical block    0              1              2
    physical block   7              1              3          <- the block table
    slot of token i  blocks[i // block_size] * block_size + i % block_size

Two sequences with the same beginning may point to the same physical blocks (`fork`). Before one of them writes into
such a block it gets a copy of its own: copy-on-write, section 4.4 of the paper (arXiv 2309.06180).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from minipage.errors import ConfigurationError
from minipage.memory.block_pool import BlockPool


class BlockCopy(NamedTuple):
    """An order to copy the K and V of a whole block, in every layer, before anything is written."""

    source: int  # physical block
    destination: int  # physical block


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """How many blocks hold `num_tokens` tokens: the last one may be part empty."""
    return -(-num_tokens // block_size)


class BlockTable:
    """The physical blocks of one sequence, in logical order, and how many of its tokens have a slot in them."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.blocks)

    def blocks_to_allocate(self, num_tokens: int) -> int:
        """How many free blocks `append(num_tokens)` would take from the pool, a copy-on-write included."""
        if num_tokens == 0:
            return 0
        new = blocks_needed(self.num_tokens + num_tokens, self.pool.block_size) - len(self)
        return new + self._next_write_is_shared()

    def append(self, num_tokens: int) -> list[BlockCopy]:
        """Give slots to `num_tokens` more tokens, all of them or none.

        Returns the blocks to copy before the new slots are written: one if the last block is part full and shared
        with another table, otherwise none.

        Raises:
            OutOfBlocksError: the pool has too few free blocks; nothing has changed.
        """
        if num_tokens < 0:
            raise ConfigurationError(f"cannot append {num_tokens} tokens.")
        copies = []
        new_blocks = self.pool.allocate_many(self.blocks_to_allocate(num_tokens))
        if num_tokens and self._next_write_is_shared():
            copies.append(BlockCopy(self.blocks[-1], new_blocks.pop(0)))
            self.pool.free(self.blocks[-1])  # this reference only: the other tables keep theirs
            self.blocks[-1] = copies[0].destination
        self.blocks += new_blocks
        self.num_tokens += num_tokens
        return copies

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        """The slots of tokens `start` to `stop - 1`: where in the KV cache their K and V are."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise ConfigurationError(f"tokens {start} to {stop} wanted, but only {self.num_tokens} have slots.")
        size = self.pool.block_size
        return [self.blocks[i // size] * size + i % size for i in range(start, stop)]

    def fork(self) -> BlockTable:
        """A second table over the same blocks: nothing is copied until one of the two writes."""
        twin = type(self)(self.pool)
        twin.blocks, twin.num_tokens = self.blocks.copy(), self.num_tokens
        for block in self.blocks:
            self.pool.share(block)
        return twin

    def free(self) -> None:
        """Give every block back, the last one first, so that the beginning of a text is the last to be reused."""
        while self.blocks:
            self.pool.free(self.blocks.pop())
        self.num_tokens = 0

    def _next_write_is_shared(self) -> bool:
        """Whether the next token would be written into a block that another table reads."""
        next_block = self.num_tokens // self.pool.block_size
        return next_block < len(self) and self.pool.ref_count(self.blocks[next_block]) > 1
