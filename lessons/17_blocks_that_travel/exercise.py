"""Lesson 17: blocks that travel. Replace each `raise NotImplementedError(...)` by code of yours.

K and V of a block are the same numbers wherever they are. So an evicted block can wait in a second memory until its
text is wanted again (17.1), and a whole table can move to another engine (17.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from minipage.memory import BlockPool, BlockTable


class Tier:
    """Exercise 17.1: a tier below the pool, which keeps evicted blocks by their hash.

    Its memory is `store`, with `store.num_slots` slots (there may be none), numbered from 0. A slot has room for K and V
    of one block:

        store.save(slot, block)    copies a block of the pool into a slot, over whatever was there
        store.load(slot, block)    copies a slot into a block of the pool; False if the slot is damaged

    A hash says exactly which K and V a block holds: equal hashes, equal contents.
    """

    def __init__(self, store: Any) -> None:
        raise NotImplementedError(
            "Exercise 17.1: which hash is in which slot, and in which order they were wanted"
        )

    def save(self, block_hash: bytes, block: int) -> None:
        """A block that can be found by `block_hash` is evicted: keep it.

        What the tier has already is not copied again; but now it counts as wanted. Otherwise the block goes into a slot
        that holds nothing; if there is none, over the one that was not wanted for the longest time.

        If `store.save` raises, its error comes out of here, and nothing can be found that is not there: not the new hash,
        nor what it would have been written over. The slot holds nothing then.
        """
        raise NotImplementedError(
            "Exercise 17.1: known? Then touch it. Otherwise choose a slot, copy, and only then know it"
        )

    def load(self, block_hash: bytes, block: int) -> bool:
        """Copy what is kept under `block_hash` into a free block of the pool; False if there is no such thing.

        What is loaded stays in the tier, and counts as wanted. A damaged slot is as good as an empty one: its hash is
        forgotten, and the answer is False.
        """
        raise NotImplementedError(
            "Exercise 17.1: a miss, or a copy; a damaged slot becomes a free one"
        )


class Handover(NamedTuple):
    """A block table on its way from one engine to another."""

    num_tokens: int
    contents: list[Any]  # K and V of its blocks, in the order of the table


def hand_over(table: BlockTable, read: Callable[[int], Any]) -> Handover:
    """Exercise 17.2: pack a table. `read(block)` returns the K and V of a block; the table stays as it is.

    A table has `blocks` and `num_tokens`. All its blocks hold tokens, the last one perhaps in a part of it only.
    """
    raise NotImplementedError(
        "Exercise 17.2: how many tokens, and what is in each block"
    )


def take_over(
    pool: BlockPool, handover: Handover, write: Callable[[int, Any], None]
) -> BlockTable:
    """Exercise 17.2: unpack it in another engine: a new table over `pool` for the same tokens.

    `BlockTable(pool)` is an empty table, `append(n)` gives slots to n tokens, and `free()` gives all blocks back.
    `write(block, contents)` writes K and V into a block of this engine. Block sizes are the same.

    Raises:
        OutOfBlocksError: the pool has too few free blocks (`append` says so); nothing is written then.
        Whatever `write` raises; then all blocks have been given back.
    """
    raise NotImplementedError(
        "Exercise 17.2: slots first, then block by block; if that fails, give them back"
    )
