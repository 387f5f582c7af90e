"""Lesson 11: CUDA kernels. Replace each `raise NotImplementedError(...)` by code of yours.

A kernel is the program of one thread; thousands run it at the same time, each with another number:

    i = cuda.grid(1)          # this thread's number: 0, 1, 2, ... over all blocks of threads

There are as many threads as it takes whole blocks of threads, so usually some too many: they must do nothing. Threads
run in any order. Nobody checks an index for you on a GPU; here, where the threads are run one after the other in plain
Python, what is outside is told you.

Both kernels work as they are with `cuda.jit(...)` on a GPU, or in numba's simulator. (11.3 and 11.4 are no kernels.)

numba compiles a small part of Python for a GPU: numbers, tuples, `if` and loops; arrays and parts of them, as in
`row = cache[3]` and `q[s, h][d]`, to be computed with one number at a time; `math`; functions of your own, with
`cuda.jit` or without; and `cuda.local.array(64, float32)` for a few numbers of a thread's own (a whole number known
beforehand, 256 at most). Not lists and comprehensions, NumPy's functions of whole arrays, or `try`. A kernel returns
nothing.
"""

from __future__ import annotations

import math  # noqa: F401 (math.exp is what a kernel uses; it has no NumPy)

from numba import cuda  # noqa: F401 (you will use it)


def copy_blocks_kernel(cache, sources, destinations):
    """Exercise 11.1: copy whole blocks; a thread for each number.

    Args:
        cache: [num_blocks, n] the n numbers of each block.
        sources, destinations: [num_copies] block numbers: block sources[j] is copied to block destinations[j].

    There are at least num_copies * n threads (num_copies may be 0). Thread i copies number i % n of copy i // n, and
    threads beyond that do nothing. No block is both a source and a destination, or a destination twice.
    """
    raise NotImplementedError(
        "Exercise 11.1: which copy, which number, and is there one at all?"
    )


def paged_attention_kernel(q, k_cache, v_cache, block_tables, context_lens, scale, out):
    """Exercise 11.2: paged attention of one token of each sequence (a decode); a thread for each sequence and head.

    Args:
        q: [num_seqs, H, D]; out: the same shape, to be written; at first it holds rubbish, NaN perhaps.
        k_cache, v_cache: [num_blocks, block_size, KH, D]; query head h uses head h // (H // KH) of them.
        block_tables: [num_seqs, max_blocks], of which only the blocks that hold tokens may be used; context_lens:
            [num_seqs], at least 1.
        scale: scores are multiplied with it. They may be tens of thousands, of either sign: see 5.2.

    There are at least num_seqs * H threads; thread i has sequence i // H and head i % H. It goes along its tokens, follows
    the block table, and writes out[sequence, head, 0 to D - 1]. There is no room for all scores: use the online softmax
    of exercise 5.4, with out[sequence, head] for the weighted sum.
    """
    raise NotImplementedError("Exercise 11.2: one sequence, one head, token by token")


def place(row, piece):
    """Exercise 11.3: where a piece of a tile lies in shared memory, so that no lane waits. In plain Python: no kernel.

    Shared memory has 32 banks of 4 bytes each, side by side. A place of 16 bytes takes 4 of them, so the places lie in 8
    columns: place p in column p % 8, which is banks 4 * (p % 8) to 4 * (p % 8) + 3. Lanes that read different places of
    the same column wait for each other.

    Args:
        row: of the tile, 0 to 63.
        piece: of the row, 0 to 7; each has 16 bytes.

    Returns:
        The number of its place, 0 to 511, always the same for the same piece. Row r has places 8 * r to 8 * r + 7, and
        each of its pieces one of its own. Eight lanes read at a time: the same piece of rows 0 to 7, of 8 to 15, and so
        on. It has to be in 8 different columns there.

    In order, piece 3 of row r would be in place 8 * r + 3: eight times column 3, and 8 lanes would take 8 turns. So if
    place(0, 3) is 3, place(1, 3) can be any of 8 to 15 except 11.
    """
    raise NotImplementedError(
        "Exercise 11.3: in which of its 8 columns, and how does the next row differ?"
    )


def first_race(events):
    """Exercise 11.4: who races? In plain Python: no kernel.

    The threads of a block run at the same time. Here somebody has let them run one after the other, as a simulator does,
    and has written down what each of them did with shared memory. Would it be the same on a GPU?

    Args:
        events: a list of (thread, deed, place), in the order in which they happened here; 0 to some hundreds.
            (2, "writes", 5): thread 2 wrote to place 5; (2, "reads", 5): it read it;
            (2, "waits", None): it came to a barrier (`syncthreads`). All threads come to the same barriers: to the
            first, the second, and so on. What a thread did before its n-th barrier has been done, for all threads that
            have passed their n-th. A thread that never waits has none behind it. In the list one thread may be barriers
            ahead of the others, which on a GPU it cannot: perhaps each was run alone.

    Returns:
        (i, j): event j is the first that races with an event before it, and event i is the first of those it races with.
        None if no two events race.

    Two events race if they are of different threads, in the same place, at least one of them writes, and no barrier lies
    between them: their order is an accident then, whoever came first here. In
    [(0, "writes", 3), (0, "waits", None), (1, "reads", 3), (1, "waits", None)] thread 1 reads before its barrier, so it
    may read too early, and the answer is (0, 2). If it waited first, and then read, the answer would be None.
    """
    raise NotImplementedError(
        "Exercise 11.4: how many barriers has each of the two threads passed?"
    )
