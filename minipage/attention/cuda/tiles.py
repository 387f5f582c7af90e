"""How a ragged batch is cut into pieces of work for blocks, when only the GPU knows the lengths.

Prompts are cut into tiles of queries.
A tile is up to `size` queries of one sequence. Sequence s starts at tile query_start_loc[s] // size + s, which leaves
at least as many tiles free for each sequence as it needs, so no table of tiles has to be made; tiles beyond the end of
their sequence have nothing to do.

    size 4      A: queries 0-4     B: query 5   C: queries 6-13
    tiles       0: 0-3  1: 4       2: 5         3: 6-9  4: 10-13  5: nothing      (a single query, B's, is a decode)

Decodes are cut into equal shares.
Their contexts are laid end to end and counted in units of a few tokens, and each block gets the same number of units.
So all blocks end together, however long the contexts are; a long context is the work of many blocks, and a block has
many short ones. A context that lies in several shares is joined by the last of its blocks to finish ("stream-K", Osama
et al. 2023, for matrix products). If there are a few more contexts than blocks that run at once, there
are as many blocks as contexts, and those of one length are not cut (launch.decode_blocks).

    contexts    A: 5 units   B: 1   C: 6       A A A A  A B C C  C C C C
    3 blocks of 4 units                        0: A     1: A B C 2: C        A and C are joined in the end
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minipage.attention.cuda.compat import cuda, device_function, kernel, types
from minipage.attention.cuda.merge import place_of
from minipage.attention.cuda.ptx import order_of_kernels, quotient

int32, uint32 = types.int32, types.uint32
WARP = 32
ALL = 0xFFFFFFFF  # the lanes that take part in a shuffle
EVERYTHING = np.int32(2**31 - 1)  # a window that no number of 32 bits exceeds: the compiler leaves it out
LEAST_SHARE = 256  # tokens of a block, at least, if the kernel decides: joining takes time, too


@device_function
def first_of_tile(tile, size, query_start_loc, num_seqs):
    """(sequence, number of the tile's first query in it); a warp looks together, at 32 sequences at a time. A tile that
    was left free is of the sequence before it, past its end."""
    seq, found = int32(-1), int32(WARP)
    while found == WARP:
        own = int32(seq + 1 + cuda.threadIdx.x % WARP)
        is_before = own < num_seqs and int32(uint32(query_start_loc[own]) // size) + own <= tile  # or at this tile
        found = int32(cuda.popc(cuda.ballot_sync(ALL, is_before)))
        seq = int32(seq + found)
    return seq, int32(tile - int32(uint32(query_start_loc[seq]) // size) - seq) * size


def num_tiles(num_tokens: int, size: int, num_seqs: int) -> int:
    """At least as many as the tiles of any batch of this size."""
    return num_tokens // size + num_seqs


@device_function
def units_of(seq, context_lens, query_start_loc, unit, window):
    """How many units of work a sequence is: none if it is no decode, else at least 1, to write its answer. What lies
    behind the window is no work."""
    if seq >= len(context_lens):
        return int32(0)
    context, begin, end = context_lens[seq], query_start_loc[seq], query_start_loc[seq + 1]  # asked for together
    units = int32(max(1, quotient(min(context, window) + unit - 1, unit)))
    return units if end - begin == 1 else int32(0)


@device_function
def total_units(context_lens, query_start_loc, unit, window):
    """Of all sequences; a warp counts together."""
    total = int32(0)
    for seq in range(cuda.threadIdx.x % WARP, len(context_lens), WARP):
        total = int32(total + units_of(seq, context_lens, query_start_loc, unit, window))
    for bit in (16, 8, 4, 2, 1):
        total = int32(total + cuda.shfl_xor_sync(ALL, total, bit))
    return total


@device_function
def find_unit(wanted, context_lens, query_start_loc, unit, window):
    """(sequence that has this unit, units of all before it); a warp counts together, 32 sequences at a time.

    If there are fewer units, it is the sequence after the last.
    """
    lane, base, before = cuda.threadIdx.x % WARP, int32(0), int32(0)
    while base < len(context_lens):
        own = units_of(base + lane, context_lens, query_start_loc, unit, window)
        end = own  # units up to and with this lane's sequence
        for distance in (1, 2, 4, 8, 16):
            other = cuda.shfl_up_sync(ALL, end, distance)
            if lane >= distance:
                end = int32(end + other)
        last = before + cuda.shfl_sync(ALL, end, WARP - 1)
        if wanted < last:
            which = cuda.popc(cuda.ballot_sync(ALL, before + end <= wanted))  # sequences that are over before it
            return int32(base + which), int32(before + cuda.shfl_sync(ALL, int32(end - own), which))
        base, before = int32(base + WARP), int32(last)
    return base, before


def barrier(is_of_block: bool) -> Any:
    """Where all threads of a block wait for each other, or those of a warp."""

    @device_function
    def meet():
        if is_of_block:
            cuda.syncthreads()
        else:
            cuda.syncwarp()

    return meet


def ragged_kernel(
    attend: Any, merge: Any, tokens: int, window: int | None, writes: bool = False, **options: Any
) -> Any:
    """The kernel that takes a block through its work: decodes, or, if a tile is of several `tokens`, prompts.

    attend: (seq, first query, first token of K and V, token after the last, place, ...) for a tile of q of a sequence;
        place: where its result goes in the workspace, or -1: it is the whole answer. For prompts the tokens of K and V
        follow from the queries.
    merge: see merge.py.
    window: how many tokens a query sees; None: all before it.
    writes: of decodes, K and V of the newest token come along (see launch_attention), and `attend` waits for them.
    options: as `kernel` has them; what `attend` needs of shared memory, of registers.
    """
    WINDOW = EVERYTHING if window is None else np.int32(window)
    let_next_begin, wait_for_last = order_of_kernels()

    def decode(
        q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens, query_start_loc, out, workspace,
        scale, q_stride, max_blocks, num_kv_heads, unit, share,
        new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
    ):  # fmt: skip
        let_next_begin()
        if not writes:
            wait_for_last()
        unit, share = int32(unit), int32(share)
        if share == 0:  # units of each block: as many as make equal shares
            blocks = cuda.gridDim.y
            total = total_units(context_lens, query_start_loc, unit, WINDOW)
            share = max(quotient(int32(LEAST_SHARE), unit), quotient(total + blocks - 1, blocks))
        begin = int32(cuda.blockIdx.y * share)
        seq, before = find_unit(begin, context_lens, query_start_loc, unit, WINDOW)
        while seq < len(context_lens) and before < begin + share:
            units = units_of(seq, context_lens, query_start_loc, unit, WINDOW)
            if units > 0:
                behind = int32(max(0, context_lens[seq] - WINDOW))
                start = int32(behind + max(0, begin - before) * unit)
                stop = int32(min(context_lens[seq], behind + (begin + share - before) * unit))
                first_block, last_block = quotient(before, share), quotient(before + units - 1, share)
                is_whole = first_block == last_block
                result_at = int32(-1) if is_whole else place_of(cuda.blockIdx.y, first_block)
                attend(
                    seq, 0, start, stop, result_at,
                    q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens, query_start_loc, out,
                    workspace, scale, q_stride, max_blocks, num_kv_heads,
                    new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
                )  # fmt: skip
                if not is_whole:
                    merge(out, workspace, first_block, last_block, query_start_loc[seq], num_kv_heads)
                cuda.syncthreads()  # all have read what the next piece overwrites
            seq, before = int32(seq + 1), int32(before + units)

    def prefill(
        q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens, query_start_loc, out, workspace,
        scale, q_stride, max_blocks, num_kv_heads, unit, share,
        new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
    ):  # fmt: skip
        let_next_begin()
        wait_for_last()
        tile = cuda.gridDim.y - 1 - cuda.blockIdx.y  # the last queries of a prompt see most, so they come first
        seq, first = first_of_tile(tile, tokens, query_start_loc, len(context_lens))
        num_queries = query_start_loc[seq + 1] - query_start_loc[seq]
        if num_queries > 1 and first < num_queries:
            attend(
                seq, first, 0, 0, -1, q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens,
                query_start_loc, out, workspace, scale, q_stride, max_blocks, num_kv_heads,
                new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
            )  # fmt: skip

    return kernel(prefill if tokens > 1 else decode, overlaps=True, **options)
