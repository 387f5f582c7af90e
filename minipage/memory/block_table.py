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
    """The physical blocks of one sequence, in logical order, and how many of its tokens have a slot in them.

    The prefix cache fills an empty table (`adopt`), and may exchange a full block for another with the same contents
    (`publish`).
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.num_tokens = 0
        self.block_hashes: list[bytes] = []  # set by the prefix cache: the root hash, then one of each published block

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.blocks)

    def blocks_to_allocate(self, num_tokens: int) -> int:
        """How many free blocks `append(num_tokens)` would take from the pool, a copy-on-write included."""
        if num_tokens == 0:
            return 0
        new = blocks_needed(self.num_tokens + num_tokens, self.pool.block_size) - len(self.blocks)
        return new + (self.shared_tail() is not None)

    def append(self, num_tokens: int) -> list[BlockCopy]:
        """Give slots to `num_tokens` more tokens, all of them or none.

        Returns the copies to make before the new slots are written: one if the last block is part full and shared
        with another table, otherwise none.

        Raises:
            OutOfBlocksError: the pool has too few free blocks; nothing has changed.
        """
        if num_tokens < 0:
            raise ConfigurationError(f"cannot append {num_tokens} tokens.")
        room = len(self.blocks) * self.pool.block_size - self.num_tokens
        # Usually there is room in the last block, which nobody else holds. (A table never has a spare block.)
        in_place = num_tokens == 0 or (num_tokens <= room and self.pool.ref_count(self.blocks[-1]) == 1)
        copies = [] if in_place else self._take_blocks(num_tokens)
        self.num_tokens += num_tokens
        return copies

    def _take_blocks(self, num_tokens: int) -> list[BlockCopy]:
        """Take the blocks that `num_tokens` more tokens need; the first may replace a shared one, to be copied into."""
        shared = self.shared_tail()
        new_blocks = self.pool.allocate_many(self.blocks_to_allocate(num_tokens))
        copies = []
        if shared is not None:
            copies.append(BlockCopy(shared, new_blocks.pop(0)))
            self.pool.free(shared)  # this reference only: the other tables keep theirs
            self.blocks[-1] = copies[0].destination
        self.blocks += new_blocks
        return copies

    def truncate(self, num_tokens: int) -> None:
        """Keep the slots of the first `num_tokens` only, and give back the blocks that are not needed for them."""
        if not 0 <= num_tokens <= self.num_tokens:
            raise ConfigurationError(f"cannot keep {num_tokens} of {self.num_tokens} tokens.")
        self.num_tokens = num_tokens
        while len(self.blocks) > blocks_needed(num_tokens, self.pool.block_size):
            self.pool.free(self.blocks.pop())
        del self.block_hashes[1 + num_tokens // self.pool.block_size :]

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        """The slots of tokens `start` to `stop - 1`: where in the KV cache their K and V are."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise ConfigurationError(f"tokens {start} to {stop} wanted, but only {self.num_tokens} have slots.")
        size = self.pool.block_size
        return [self.blocks[i // size] * size + i % size for i in range(start, stop)]

    def fork(self) -> BlockTable:
        """A second table over the same blocks: nothing is copied until one of the two writes."""
        twin = type(self)(self.pool)
        twin.blocks = self.blocks.copy()
        twin.num_tokens = self.num_tokens
        twin.block_hashes = self.block_hashes.copy()
        for block in self.blocks:
            self.pool.share(block)
        return twin

    def free(self) -> None:
        """Give every block back, the last one first, so that the beginning of a text is the last to be reused."""
        while self.blocks:
            self.pool.free(self.blocks.pop())
        self.num_tokens = 0
        self.block_hashes = []

    def move_to(self, pool: BlockPool, moved: dict[int, int]) -> None:
        """Move to another pool. Tables that shared a block share the block it moves to.

        `moved`, one dictionary for all those tables, says which blocks have moved already, {old block: new block}, and
        is added to. `pool` must have enough free blocks. The tokens keep their place in the table; copying K and V is
        up to the caller.
        """
        old_pool, old_blocks = self.pool, self.blocks
        self.pool = pool
        self.blocks = []
        self.block_hashes = self.block_hashes[:1]  # the blocks are others now, to be published anew
        for block in old_blocks:
            if block in moved:
                pool.share(moved[block])
            else:
                moved[block] = pool.allocate()
            self.blocks.append(moved[block])
        for block in reversed(old_blocks):  # as in free()
            old_pool.free(block)

    def shared_tail(self) -> int | None:
        """The block that the next token would be written into, if another table holds it too; otherwise None."""
        next_block = self.num_tokens // self.pool.block_size
        if next_block < len(self.blocks) and self.pool.ref_count(self.blocks[next_block]) > 1:
            return self.blocks[next_block]
        return None
