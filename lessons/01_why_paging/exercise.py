"""Lesson 1: why paging. Replace each `raise NotImplementedError(...)` by code of yours.

A slot is room for the K and V of one token. Before paging, every request had its slots in one piece, reserved when it
began, as many as it might ever need. Here you count what that wastes, and what paging wastes.

    python -m minipage learn check 1.1      try one step
    python -m minipage learn hint 1.1       a nudge; again for more
"""

from __future__ import annotations


def reserved_waste(lengths: list[int], max_len: int) -> float:
    """Exercise 1.1: the share of slots that are reserved and never used, when each request reserves `max_len`.

    `lengths` are the tokens that the requests had in the end, each from 0 to `max_len`, which is at least 1. The result
    is a number from 0.0 (nothing wasted) to 1.0, not rounded.

    reserved_waste([100, 300], max_len=400) is 0.5: of 800 slots 400 were used. With no request nothing is wasted: 0.0.
    """
    raise NotImplementedError("Exercise 1.1: (reserved - used) / reserved")


def paged_waste(lengths: list[int], block_size: int) -> float:
    """Exercise 1.2: the same share, when each request takes blocks of `block_size` slots as it grows.

    Only the last block of a request can be part empty. A request of 0 tokens takes no block; where no block is taken
    nothing is wasted: 0.0.

    paged_waste([5, 8], block_size=4) is 0.1875: 2 + 2 blocks are 16 slots, of which 13 are used.
    """
    raise NotImplementedError(
        "Exercise 1.2: round each length up to whole blocks, then as in 1.1"
    )


def how_many_fit(needed: list[int], num_slots: int) -> int:
    """Exercise 1.3: how many requests fit at the same time, first come, first served.

    `needed` says how many slots each one takes (0 or more), in the order of their arrival. The first that does not fit
    has to wait, and so do all behind it, even smaller ones, and those that need none.

    how_many_fit([400, 400, 400, 10], num_slots=1000) is 2.
    """
    raise NotImplementedError("Exercise 1.3: count until one does not fit any more")
