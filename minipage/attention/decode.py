"""One query at a time, its context in pieces: each thread takes a run of pieces, and the results are joined.

For sequences with few new tokens. `minipage.attention.cpu` sends them here, the others to prefill.py, and says what is
summed up.
"""

from __future__ import annotations

import numba
import numpy as np

from minipage.simd.options import compiled, compiled_parallel
from minipage.simd.vectors import (
    LANES,
    exp,
    filled,
    fma,
    highest_of,
    itemsize,
    load,
    prefetch,
    product,
    store,
    store_totals,
    total_of,
)

PIECE = 128  # tokens of context that one thread walks along
STEP = LANES  # of them at a time, so that a head's scores are one vector


@compiled_parallel
def decode(
    q, k, v, k_scales, v_scales, block_size, block_tables, context_lens, query_start_loc, scale, window, out, seqs,
    num_threads,
):  # fmt: skip
    """Attention of the queries of the sequences `seqs`, into `out`.

    q, out: [num_tokens, num_heads, head_size]; k, v: [num_slots, num_kv_heads, head_size], a row for each slot of the
    pool; k_scales, v_scales: [num_slots, num_kv_heads], or None; window: how many of the last tokens a query sees,
    itself included.
    """
    pieces = cut_contexts(context_lens, query_start_loc, seqs, window)  # [num_pieces, 4]
    highest = np.empty((len(pieces), q.shape[1]), q.dtype)  # [num_pieces, num_heads]
    total = np.empty((len(pieces), q.shape[1]), q.dtype)  # [num_pieces, num_heads]
    acc = np.empty((len(pieces), *q.shape[1:]), q.dtype)  # [num_pieces, num_heads, head_size]
    num_shares = min(num_threads, len(pieces))
    for share in numba.prange(num_shares):
        begin, end = share * len(pieces) // num_shares, (share + 1) * len(pieces) // num_shares
        for p in range(begin, end):
            seq, row, number, visible = pieces[p]
            start = max(0, visible - window) + number * PIECE
            block_table, results = block_tables[seq], (highest[p], total[p], acc[p])
            attend_piece(q[row], k, v, k_scales, v_scales, block_size, block_table, start, visible, scale, *results)
        for p in range(begin, end):
            if pieces[p, 2] == 0:  # the first piece of a query: it has the number 0
                join_pieces(p, end, pieces, highest, total, acc, out)
    # What lies in several shares is joined here: to wake the threads again would take longer.
    joined = -1
    for share in range(1, num_shares):
        p = share * len(pieces) // num_shares
        first = p - pieces[p, 2]
        if first < p and first != joined:
            join_pieces(first, len(pieces), pieces, highest, total, acc, out)
            joined = first


@compiled
def cut_contexts(context_lens, query_start_loc, seqs, window):
    """[num_pieces, 4]: (sequence, row of q, number, visible).

    The query in this row sees the last `window` of the first `visible` tokens of its sequence. What it sees is cut
    into pieces of PIECE tokens, and `number` counts them from 0.
    """
    num_pieces = 0
    for seq in seqs:
        num_queries = query_start_loc[seq + 1] - query_start_loc[seq]
        num_pieces += num_queries * (min(window, context_lens[seq]) // PIECE + 1)  # at most
    pieces = np.empty((num_pieces, 4), np.int64)  # [num_pieces, 4]
    p = 0
    for seq in seqs:
        # The last query of a sequence sees its whole context, the one before it one token less, and so on.
        for row in range(query_start_loc[seq], query_start_loc[seq + 1]):
            visible = context_lens[seq] - (query_start_loc[seq + 1] - 1 - row)
            for number in range((min(window, visible) + PIECE - 1) // PIECE):
                pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3] = seq, row, number, visible
                p += 1
    return pieces[:p]


@compiled
def attend_piece(q, k, v, k_scales, v_scales, block_size, block_table, start, visible, scale, highest, total, acc):
    """One query, [num_heads, head_size], looks at up to PIECE tokens of its sequence, from token `start` on.

    It sees no token from `visible` on. highest, total: [num_heads], acc: [num_heads, head_size], the results.
    """
    num_heads, num_kv_heads = len(q), k.shape[1]
    highest[:], total[:], acc[:] = -np.inf, 0, 0
    slots = np.empty(2 * STEP, np.uint64)  # [2 * STEP]; of this step, and of the next one
    step_scales = np.ones((2, num_kv_heads, STEP), q.dtype)  # [2, num_kv_heads, STEP]; of K and of V
    scores = np.empty((num_heads, STEP), q.dtype)  # [num_heads, STEP]; then the weights
    shrink = np.empty(num_heads, q.dtype)  # [num_heads]
    for token in range(start, min(start + PIECE, visible), STEP):
        find_slots(block_table, block_size, token, visible, slots)
        if k_scales is not None:
            find_scales(k_scales, v_scales, slots, step_scales)
        multiply_keys(q, k, v, slots, scores)
        weigh(scores, min(STEP, visible - token), scale, step_scales, highest, total, shrink)
        add_values(scores, k, v, slots, shrink, acc)


@compiled
def find_slots(block_table, block_size, start, stop, slots):
    """slots[j] = the slot of token start + j, or, from token `stop` on, that of token stop - 1, which was written."""
    block, offset = start // block_size, start % block_size
    for j in range(len(slots)):
        slots[j] = block_table[block] * block_size + offset
        if start + j + 1 < stop:
            offset += 1
            if offset == block_size:
                block, offset = block + 1, 0


@compiled
def find_scales(k_scales, v_scales, slots, step_scales):
    """step_scales[0, head, j] = k_scales[slots[j], head], [1, head, j] that of v; the next step's are fetched ahead."""
    for j in range(STEP):
        prefetch(k_scales, (slots[STEP + j],)), prefetch(v_scales, (slots[STEP + j],))
        for kv_head in range(step_scales.shape[1]):
            step_scales[0, kv_head, j] = k_scales[slots[j], kv_head]
            step_scales[1, kv_head, j] = v_scales[slots[j], kv_head]


@compiled
def weigh(scores, num_visible, scale, step_scales, highest, total, shrink):
    """Turn the products q . k of a step into weights for rows of V.

    They are multiplied with `scale` and the scales of K before the exponential, and with the scales of V after it. The
    weights of tokens from `num_visible` on become next to nothing, exp(-87).

    scores: [num_heads, STEP], products and then weights; highest, total: [num_heads], brought up to date; shrink:
    [num_heads], what to multiply everything with that was summed up before.
    """
    num_kv_heads = step_scales.shape[1]
    heads_per_kv = len(scores) // num_kv_heads
    for kv_head in range(num_kv_heads):
        for h in range(kv_head * heads_per_kv, (kv_head + 1) * heads_per_kv):
            store(scores, (h, 0), product(product(load(scores, (h, 0)), scale), load(step_scales, (0, kv_head, 0))))
    for j in range(num_visible, STEP):
        for h in range(len(scores)):
            scores[h, j] = -np.inf
    for h in range(len(scores)):
        shrink[h] = highest[h]  # for now: the highest of the steps before
        highest[h] = max(highest[h], highest_of(load(scores, (h, 0))))
    for h in range(len(scores)):
        shrink[h] = exp(shrink[h] - highest[h])
    for h in range(len(scores)):
        highest_score = highest[h]
        for j in range(STEP):
            scores[h, j] = exp(scores[h, j] - highest_score)
        total[h] = total[h] * shrink[h] + total_of(load(scores, (h, 0)))
    for kv_head in range(num_kv_heads):
        for h in range(kv_head * heads_per_kv, (kv_head + 1) * heads_per_kv):
            store(scores, (h, 0), product(load(scores, (h, 0)), load(step_scales, (1, kv_head, 0))))


@compiled
def prefetch_rows(array, slots, first, kv_head):
    """Have K or V of one head fetched into the processor's cache, of four slots from slots[first] on.

    Of float32 (and float64) only the first line of each slot, with its first head: from there on the processor fetches
    by itself, and faster. docs/performance_attention.md has the figures, of heads of 64.
    """
    for i in range(first, first + 4):
        if itemsize(array) < 4:
            prefetch(array, (slots[i], kv_head))
        elif kv_head == 0:
            prefetch(array, (slots[i], 0, 0))


@compiled
def multiply_keys(q, k, v, slots, scores):
    """scores[h, j] = q[h] . k[slots[j], its head], for four slots at a time, as their rows lie in memory.

    v is only here to be fetched meanwhile: it is of the same slots.
    """
    num_kv_heads, head_size = k.shape[1:]
    heads_per_kv = len(q) // num_kv_heads
    for j in range(0, STEP, 4):
        slot0, slot1, slot2, slot3 = slots[j], slots[j + 1], slots[j + 2], slots[j + 3]
        for kv_head in range(num_kv_heads):
            prefetch_rows(v, slots, j, kv_head)
            for h in range(kv_head * heads_per_kv, (kv_head + 1) * heads_per_kv):
                sum0 = sum1 = sum2 = sum3 = filled(q.dtype.type(0))
                for d in range(0, head_size, LANES):
                    numbers = load(q, (h, d))
                    sum0 = fma(sum0, numbers, load(k, (slot0, kv_head, d)))
                    sum1 = fma(sum1, numbers, load(k, (slot1, kv_head, d)))
                    sum2 = fma(sum2, numbers, load(k, (slot2, kv_head, d)))
                    sum3 = fma(sum3, numbers, load(k, (slot3, kv_head, d)))
                store_totals(scores, (h, j), (sum0, sum1, sum2, sum3))


@compiled
def add_values(weights, k, v, slots, shrink, acc):
    """acc[h] = acc[h] * shrink[h] + the sum over j of weights[h, j] * v[slots[j], its head]

    k is only here to be fetched meanwhile: it is of the next step's slots.
    """
    num_kv_heads, head_size = v.shape[1:]
    heads_per_kv = len(acc) // num_kv_heads
    for h in range(len(acc)):
        for d in range(0, head_size, LANES):
            store(acc, (h, d), product(load(acc, (h, d)), shrink[h]))
    for j in range(0, STEP, 4):
        slot0, slot1, slot2, slot3 = slots[j], slots[j + 1], slots[j + 2], slots[j + 3]
        for kv_head in range(num_kv_heads):
            prefetch_rows(k, slots, STEP + j, kv_head)
            for h in range(kv_head * heads_per_kv, (kv_head + 1) * heads_per_kv):
                for d in range(0, head_size, LANES):
                    values = fma(load(acc, (h, d)), weights[h, j], load(v, (slot0, kv_head, d)))
                    values = fma(values, weights[h, j + 1], load(v, (slot1, kv_head, d)))
                    values = fma(values, weights[h, j + 2], load(v, (slot2, kv_head, d)))
                    store(acc, (h, d), fma(values, weights[h, j + 3], load(v, (slot3, kv_head, d))))


@compiled
def join_pieces(first, end, pieces, highest, total, acc, out):
    """Join the pieces of a query, beginning with `first`, into its row of `out`, unless some lie from `end` on."""
    stop = first + 1
    while stop < len(pieces) and pieces[stop, 2] > 0:
        stop += 1
    if stop > end:
        return
    row = pieces[first, 1]
    weights = np.empty(stop - first, out.dtype)  # [pieces of this query]
    for h in range(out.shape[1]):
        new_highest, new_total = out.dtype.type(-np.inf), out.dtype.type(0)
        for p in range(first, stop):
            new_highest = max(new_highest, highest[p, h])
        for p in range(first, stop):
            weights[p - first] = exp(highest[p, h] - new_highest)
            new_total += total[p, h] * weights[p - first]
        for d in range(0, out.shape[2], LANES):
            values = filled(out.dtype.type(0))
            for p in range(first, stop):
                values = fma(values, weights[p - first] / new_total, load(acc, (p, h, d)))
            store(out, (row, h, d), values)
