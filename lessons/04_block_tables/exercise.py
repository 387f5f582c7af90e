"""Lesson 4: block tables. Replace each `raise NotImplementedError(...)` by code of yours.

A block table is the page table of one sequence. Token i lives in logical block `i // block_size`, at offset
`i % block_size`; the table says which physical block of the pool that is:

    tokens           To be or not | to be that i | s the
    logical block    0              1              2
    physical block   7              1              3          <- self.blocks
    slot of token i  blocks[i // block_size] * block_size + i % block_size

The pool is handed in: `self.pool.allocate()`, `.allocate_many(n)`, `.free(block)`, `.num_free` and `.block_size` are
what you need of it. Nobody shares blocks yet; that is lesson 7. `self.blocks` is a list, and what is in it, and slots,
are whole numbers; others of minipage read them.
"""

from __future__ import annotations

from collections.abc import Iterator

from minipage.errors import ConfigurationError  # noqa: F401 (you will raise it)
from minipage.memory import BlockCopy, BlockPool


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """Exercise 4.1: how many blocks hold `num_tokens` tokens; the last one may be part empty.

    blocks_needed(8, block_size=4) is 2, and blocks_needed(9, block_size=4) is 3.
    """
    raise NotImplementedError("Exercise 4.1: round up")


class BlockTable:
    """The physical blocks of one sequence, in logical order, and how many of its tokens have a slot in them."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.num_tokens = 0
        self.block_hashes: list[
            bytes
        ] = []  # the prefix cache of lesson 8 keeps its notes here

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.blocks)

    def blocks_to_allocate(self, num_tokens: int) -> int:
        """How many free blocks `append(num_tokens)` takes from the pool. (Given.)"""
        return blocks_needed(self.num_tokens + num_tokens, self.pool.block_size) - len(
            self.blocks
        )

    def append(self, num_tokens: int) -> list[BlockCopy]:
        """Exercise 4.2: give slots to `num_tokens` more tokens, all of them or none.

        New blocks are taken from the pool only when the last one is full and one more token comes; 0 tokens take
        nothing. Returns the blocks that have to be copied first: none before lesson 7, so an empty list.

        Raises OutOfBlocksError if the pool has too few blocks (the pool does that), and then nothing has changed, in
        the table or in the pool: no block may be taken and given back, since a prefix cache forgets what a block holds
        as soon as the pool hands it out. Raises ConfigurationError if `num_tokens` is negative.
        """
        raise NotImplementedError(
            "Exercise 4.2: take the blocks that are missing, and count the tokens"
        )

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        """Exercise 4.3: a list of the slots of tokens `start` to `stop - 1`: where in the KV cache their K and V are.

        Raises ConfigurationError unless 0 <= start <= stop <= num_tokens.
        """
        raise NotImplementedError(
            "Exercise 4.3: blocks[i // block_size] * block_size + i % block_size, for each token"
        )

    def free(self) -> None:
        """Exercise 4.4: give every block back to the pool, the last one first, and be as empty as a new table.

        That goes for `block_hashes`, too. The last first, because the pool reuses the block that was freed longest ago: so the beginning of a text, which
        other texts may share, is the last to be reused.
        """
        raise NotImplementedError("Exercise 4.4: give the blocks back, from the end")

    def move_to(self, pool: BlockPool, moved: dict[int, int]) -> None:
        """Exchange every block for one of another pool; `moved` says where blocks went already. (Given: lesson 9.)"""
        old_pool, old_blocks = self.pool, self.blocks
        self.pool, self.blocks, self.block_hashes = pool, [], self.block_hashes[:1]
        for block in old_blocks:
            if block in moved:
                pool.share(moved[block])
            else:
                moved[block] = pool.allocate()
            self.blocks.append(moved[block])
        for block in reversed(old_blocks):
            old_pool.free(block)


NULL_BLOCK = -1  # stands in a table where a block was given back, and is no block


def slide(table: BlockTable, window: int) -> list[int]:
    """Exercise 4.5: give back the blocks behind a sliding window.

    In a layer with a window, a token sees the last `window` tokens, itself included: token 9 with a window of 4 sees the
    tokens 6, 7, 8 and 9. The next token of this table is number `table.num_tokens`, and every later one sees even less of
    what is there. A block goes back to the pool (`table.pool.free`) as soon as none of its tokens is seen any more, the
    first block first, and NULL_BLOCK takes its place in `table.blocks`, so that every other block keeps its own. Nothing
    else changes. This is called after every step, so there may be null blocks already.

    Returns:
        The blocks that went home in this call, in order.

    Blocks of 4, and a table of 9 tokens in the blocks [7, 1, 3]: slide(table, 4) returns [7] and leaves [-1, 1, 3],
    because token 9 sees the tokens from 6 on.
    """
    raise NotImplementedError(
        "Exercise 4.5: which is the first token that is still seen? Blocks that end before it go home"
    )


def visible_slots(table: BlockTable, window: int) -> list[int]:
    """Exercise 4.5: the slots that the next token reads, in order: those of the tokens before it that it sees.

    Of a table that slides after every step, they are all there. With a window of 1 a token sees nothing but itself.

    In the example above: slots 6 and 7 of block 1, and slot 12: [6, 7, 12].
    """
    raise NotImplementedError(
        "Exercise 4.5: the slots of tokens `first that is seen` to `num_tokens - 1`"
    )
