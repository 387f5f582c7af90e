"""Lesson 7: fork and copy-on-write. Replace each `raise NotImplementedError(...)` by code of yours.

Two texts with the same beginning can point to the same physical blocks. Before one of them writes into a block that
the other one holds too, it gets a copy of its own:

    before      parent  [ 7 │ 1 ]       child  [ 7 │ 1 ]       block 1 is part full, and has two references
    child.append(1)                             orders BlockCopy(1, 3): copy block 1 to block 3 first
    after       parent  [ 7 │ 1 ]       child  [ 7 │ 3 ]       block 7 is full: nobody writes it, it stays shared

The class below is laid over the block table of lesson 4, which knows nothing of sharing:

    class SharingBlockTable(CopyOnWrite, BlockTable): ...

So you have `self.pool`, `self.blocks` and `self.num_tokens`, and `super().append(n)` is lesson 4's append. (Yours,
if you have written it; otherwise minipage's.) It knows of no copies: it takes new blocks for the tokens that do not fit
into those there are, whether you call it before you exchange the shared block or after, and raises OutOfBlocksError if
there are too few for that.
"""

from __future__ import annotations

from minipage.errors import OutOfBlocksError  # noqa: F401 (you may want to raise it)
from minipage.memory import BlockCopy


class CopyOnWrite:
    """What a block table needs on top, so that several can share blocks."""

    def fork(self):
        """Exercise 7.1: a second table over the same blocks; nothing is copied.

        Make it with `type(self)(self.pool)`. It has lists of its own with the same blocks and the same `block_hashes` (the
        notes of lesson 8's prefix cache), the same `num_tokens`, and a reference to every block (`pool.share`).
        """
        raise NotImplementedError("Exercise 7.1: a new table that shares every block")

    def shared_tail(self) -> int | None:
        """Exercise 7.2: the block that the next token would be written into, if another table holds it too.

        Its number in the pool; None if nobody else holds it (`pool.ref_count`), or if the next token begins a new block
        anyway.
        """
        raise NotImplementedError(
            "Exercise 7.2: is the last block part full, and shared?"
        )

    def blocks_to_allocate(self, num_tokens: int) -> int:
        """Exercise 7.3: how many free blocks `append(num_tokens)` takes from the pool, a copy included.

        `super().blocks_to_allocate(num_tokens)` counts the new ones. Appending 0 tokens takes nothing.
        """
        raise NotImplementedError(
            "Exercise 7.3: the new blocks, and one for the copy if there is one"
        )

    def append(self, num_tokens: int) -> list[BlockCopy]:
        """Exercise 7.4: give slots to `num_tokens` more tokens, all of them or none.

        If the first of them would be written into a shared block, take a block from the pool to copy it into, put that
        one into the table instead, give back this table's reference to the shared one, and return the order to copy:
        `[BlockCopy(shared, copy)]`. Otherwise return [].

        Raises OutOfBlocksError if the pool has too few free blocks for everything, and then nothing has changed: no
        block is taken, not even to be given back.
        """
        raise NotImplementedError("Exercise 7.4: copy the shared block on write")
