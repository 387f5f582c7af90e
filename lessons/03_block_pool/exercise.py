"""Lesson 3: the block pool. Replace each `raise NotImplementedError(...)` by code of yours.

The pool is the physical memory: `num_blocks` blocks, each with room for the K and V of `block_size` tokens. It never
touches K or V. It deals in block numbers, and knows two things of each block: how many block tables hold it (its
reference count), and, if nobody does, its place in the free queue.

    free queue, next first   4 0 2        ──▶ blocks leave here, at the front
                                          ◀── and come back at the end
    reference counts         [0, 1, 0, 2, 0]

How you keep this is up to you: lists, a deque, a dictionary. Only what the methods promise counts. What comes out,
blocks and counts, are whole numbers: Python's ints, or NumPy's.

The pool has blocks 0 to num_blocks - 1, and of any other number, negative ones included, every method that is given a
block raises BlockError. A call that raises changes nothing.

    python -m minipage learn check 3.1      try one step
    python -m minipage learn hint 3.1       a nudge; again for more
"""

from __future__ import annotations

from collections.abc import Callable

from minipage.errors import BlockError, ConfigurationError, OutOfBlocksError  # noqa: F401 (you will raise them)


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, a free queue, and a reference count for each block."""

    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        """Exercise 3.1: a new pool is all free, and its queue begins with block 0, then 1, 2, ..."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Call this with every block that is handed out for new contents (3.2, 3.5), once, in the order in which they are
        # handed out. Lesson 8 will listen to it: until then it does nothing.
        self.on_evict: Callable[[int], None] = lambda block: None
        raise NotImplementedError(
            "Exercise 3.1: keep the free queue and the reference counts, in whatever you like"
        )

    @property
    def free_queue(self) -> tuple[int, ...]:
        """Exercise 3.1: the free blocks as a tuple, next to be allocated first."""
        raise NotImplementedError("Exercise 3.1: the free blocks, in order")

    @property
    def num_free(self) -> int:
        """Exercise 3.1: how many blocks are free."""
        raise NotImplementedError("Exercise 3.1: count the free blocks")

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def ref_count(self, block: int) -> int:
        """Exercise 3.1: how many block tables hold `block`; 0 means that it is free.

        Raises BlockError if there is no such block.
        """
        raise NotImplementedError("Exercise 3.1: the number of references to a block")

    def allocate(self) -> int:
        """Exercise 3.2: take the block at the front of the free queue, with one reference, and return its number.

        Call `self.on_evict(block)`: whatever the block held is gone. Raises OutOfBlocksError if no block is free.
        """
        raise NotImplementedError(
            "Exercise 3.2: take the block at the front of the free queue"
        )

    def free(self, block: int) -> None:
        """Exercise 3.3: drop one reference; with the last one the block goes to the end of the free queue.

        Raises BlockError if the block is free already, or there is no such block.
        """
        raise NotImplementedError("Exercise 3.3: drop one reference")

    def share(self, block: int) -> None:
        """Exercise 3.4: add a reference to a block in use.

        Raises BlockError if it is free (its contents may vanish at any time), or there is no such block.
        """
        raise NotImplementedError("Exercise 3.4: add one reference")

    def allocate_many(self, count: int) -> list[int]:
        """Exercise 3.5: take `count` blocks from the front, in order, each with one reference; or none if too few are free.

        Raises OutOfBlocksError, and changes nothing, if fewer are free; ConfigurationError if `count` is negative.
        """
        raise NotImplementedError("Exercise 3.5: all of the blocks, or none of them")

    def revive(self, block: int) -> None:
        """Exercise 3.6: take one particular block out of the free queue, because what it holds is wanted again.

        It gets one reference, and the others keep their order. Nothing new will be written, so `on_evict` is not called.
        Raises BlockError if the block is in use, or there is no such block.
        """
        raise NotImplementedError(
            "Exercise 3.6: take this block out of the free queue, from wherever it is"
        )

    def check_integrity(self, block_tables) -> None:  # (given)
        """Raise IntegrityError unless the block tables account for every reference."""
        from collections import Counter

        from minipage.errors import IntegrityError

        holders = Counter(block for table in block_tables for block in table)
        for block in range(self.num_blocks):
            count, is_free = self.ref_count(block), block in self.free_queue
            if count != holders[block] or is_free != (count == 0):
                raise IntegrityError(
                    f"block {block} has reference count {count} and is {'' if is_free else 'not '}in the free queue, "
                    f"and {holders[block]} block-table entries name it."
                )
