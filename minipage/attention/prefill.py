"""Many queries of a sequence at once: tiles of queries against tiles of keys, as products of small matrices.

This is the second half of `minipage.attention.cpu`, which says what is summed up.
"""

from __future__ import annotations

import numba
import numpy as np

from minipage.attention.decode import find_slots
from minipage.simd.matrix import add_product
from minipage.simd.options import compiled, compiled_parallel
from minipage.simd.vectors import LANES, exp, filled, fma, load, load_part, store

QUERIES, KEYS = 64, 64  # a tile of a prefill


@compiled_parallel
def prefill(
    q, k, v, k_scales, v_scales, block_size, block_tables, context_lens, query_start_loc, scale, window, out, seqs
):
    """Attention of the queries of the sequences `seqs`, into `out`; arguments as of `decode`."""
    tiles = cut_queries(query_start_loc, seqs)  # [num_tiles, 3]
    for item in numba.prange(k.shape[1] * len(tiles)):  # heads vary slowest: each thread gets a share of every text
        kv_head = item // len(tiles)
        seq, begin, end = tiles[item % len(tiles)]
        visible = context_lens[seq] - (query_start_loc[seq + 1] - end)  # to the last query of the tile
        queries, table, own = q[begin:end], block_tables[seq], out[begin:end]
        attend_tile(queries, k, v, k_scales, v_scales, block_size, table, visible, kv_head, scale, window, own)


@compiled
def cut_queries(query_start_loc, seqs):
    """[num_tiles, 3]: (sequence, begin, end): rows of q, those of a sequence cut after every QUERIES."""
    num_tiles = 0
    for seq in seqs:
        num_tiles += (query_start_loc[seq + 1] - query_start_loc[seq] + QUERIES - 1) // QUERIES
    tiles = np.empty((num_tiles, 3), np.int64)  # [num_tiles, 3]
    t = 0
    for seq in seqs:
        for begin in range(query_start_loc[seq], query_start_loc[seq + 1], QUERIES):
            tiles[t, 0], tiles[t, 1], tiles[t, 2] = seq, begin, min(begin + QUERIES, query_start_loc[seq + 1])
            t += 1
    return tiles


@compiled
def attend_tile(q, k, v, k_scales, v_scales, block_size, block_table, visible, kv_head, scale, window, out):
    """Queries that follow each other, [queries, num_heads, head_size], in the heads that share a head of K and V.

    The last of them sees the last `window` of the first `visible` tokens, the one before it one less far, and so on.
    """
    num_queries, num_heads, head_size = q.shape
    heads_per_kv = num_heads // k.shape[1]
    num_rows = num_queries * heads_per_kv  # a row: a query in one of the heads
    width = -(-head_size // (2 * LANES)) * 2 * LANES  # of a row: zeros fill it up to whole pairs of vectors
    rows = np.zeros((QUERIES * heads_per_kv, width), q.dtype)  # [rows, width]
    for r in range(num_rows):
        for d in range(head_size):
            rows[r, d] = q[r // heads_per_kv, kv_head * heads_per_kv + r % heads_per_kv, d] * scale
    slots = np.empty(KEYS, np.uint64)  # [KEYS]
    keys = np.zeros((KEYS, width), q.dtype)  # [KEYS, width]
    keys_transposed = np.empty((head_size, KEYS), q.dtype)  # [head_size, KEYS]
    values = np.zeros((KEYS, width), q.dtype)  # [KEYS, width]
    scores = np.zeros((len(rows), KEYS), q.dtype)  # [rows, KEYS]; then the weights
    highest = np.full(len(rows), -np.inf, q.dtype)  # [rows]
    total = np.zeros(len(rows), q.dtype)  # [rows]
    acc = np.zeros(rows.shape, q.dtype)  # [rows, width]
    for start in range(max(0, visible - num_queries + 1 - window), visible, KEYS):
        find_slots(block_table, block_size, start, visible, slots)
        gather(k, k_scales, slots, kv_head, keys)
        gather(v, v_scales, slots, kv_head, values)
        for d in range(head_size):
            for j in range(KEYS):
                keys_transposed[d, j] = keys[j, d]
        first_row = max(0, start - (visible - num_queries)) * heads_per_kv  # those before it see none of these keys
        scores[first_row:] = 0
        add_product(rows, keys_transposed, first_row, num_rows, scores)
        for r in range(first_row, num_rows):
            num_visible = visible - num_queries + 1 + r // heads_per_kv - start  # counted from the first of these keys
            first, stop = max(0, num_visible - window), min(KEYS, num_visible)
            if first < stop:
                highest[r], total[r], shrink = softmax_step(scores[r], first, stop, highest[r], total[r])
                for d in range(width):
                    acc[r, d] *= shrink
            else:
                scores[r] = 0
        add_product(scores, values, first_row, num_rows, acc)
    for r in range(num_rows):
        for d in range(head_size):
            out[r // heads_per_kv, kv_head * heads_per_kv + r % heads_per_kv, d] = acc[r, d] / total[r]


@compiled
def softmax_step(scores, first, stop, highest, total):
    """Turn a row of scores into weights, those before `first` and from `stop` on into 0.

    Gives the new highest and total, and what to multiply everything with that was summed up before.
    """
    scores[:first] = -np.inf  # and so no maximum: a loop from `first` on would take longer
    new_highest = highest
    for j in range(stop):
        new_highest = max(new_highest, scores[j])
    shrink = exp(highest - new_highest)
    new_total = total * shrink
    for j in range(len(scores)):
        scores[j] = exp(scores[j] - new_highest)
    scores[:first] = 0
    scores[stop:] = 0
    for j in range(len(scores)):
        new_total += scores[j]
    return new_highest, new_total, shrink


@compiled
def gather(cache, scales, slots, kv_head, rows):
    """rows[j] = the numbers that cache[slots[j], kv_head] stands for"""
    head_size = cache.shape[2]
    zero, one = rows.dtype.type(0), rows.dtype.type(1)
    for j in range(len(slots)):
        scale = one if scales is None else scales[slots[j], kv_head]
        for d in range(0, head_size, LANES):
            place = slots[j], kv_head, d
            row = load(cache, place) if d + LANES <= head_size else load_part(cache, place, head_size - d)
            store(rows, (j, d), fma(filled(zero), scale, row))
