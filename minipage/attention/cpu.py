"""Paged attention on the CPU: numba, parallel, reading K and V straight from the blocks.

Nothing is gathered for a decode, and no scores are kept. Whoever walks along a block table holds three things for each
head: the highest score so far, the sum of the weights, and the weighted sum of the rows of V.

    highest, total, acc = -inf, 0, 0
    for the next few tokens of the context:
        scores = q . K * scale
        if one is higher:     acc, total = acc * exp(highest - score), total * exp(highest - score);   highest = score
        weights = exp(scores - highest);   total += sum of weights;   acc += weights . V
    out = acc / total

This is the online softmax (Milakov and Gimelshein, arXiv 1805.02867), the idea under FlashAttention too. Two results of
that kind can be joined in the same way, so a context may be cut into pieces:

    decode     q ─▶ [── piece 0 ──][── piece 1 ──][─ 2 ─]      each piece by any thread, then joined ("split-KV")
    prefill    a tile of queries ─▶ [keys][keys][keys][ke╲     two products of small matrices with each tile of keys

A decode reads every number of K and V once and uses it once for each query head: the memory is the limit. In a prefill
all queries of a tile use what was read once: the arithmetic is the limit. How anything is summed up depends on the
sequence alone, never on what else is in the batch or how many threads there are.
"""

from __future__ import annotations

import os
from typing import Any

import numba
import numpy as np

from minipage.attention.arguments import Floats, Integers, check_arguments
from minipage.attention.vectors import LANES, exp, filled, fma, load, load_part, prefetch, store, total_of

# Threads that wait for work shall sleep, but not at once: to wake one takes some 75 us. By default GNU OpenMP lets them
# spin for long, and they take the cores from others that compute (NumPy's threads, too): on two busy cores, steps were
# measured ten times slower. A thousand turns are some 20 us. Both are read at the first call.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

PIECE = 128  # tokens of context that one thread walks along
STEP = 16  # of them at a time
QUERIES, KEYS = 64, 64  # a tile of a prefill
MANY = 4  # with this many queries a sequence is a prefill

# Sums may be reordered (that is what lets them use vector instructions) and multiplications fused with additions;
# infinities must keep their meaning, for `highest` starts at one.
options: Any = {"cache": True, "fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"}
# Only the loops that say `prange` shall be shared among the threads, not every NumPy expression too.
expressions = ["comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil"]
compiled: Any = numba.njit(**options)
compiled_parallel: Any = numba.njit(**options, parallel=dict.fromkeys(expressions, False))  # type: ignore[call-overload]


def paged_attention(
    q: Floats,
    k_cache: Floats,
    v_cache: Floats,
    block_tables: Integers,
    context_lens: Integers,
    query_start_loc: Integers,
    scale: float,
    k_scales: Floats | None = None,
    v_scales: Floats | None = None,
) -> Floats:
    """Attention of a ragged batch over K and V in blocks; arguments, shapes and dtypes: `minipage.attention.arguments`.

    Raises KernelArgumentError if they do not fit together. The first call ever compiles for some seconds; the machine
    code is then kept in numba's cache on disk.
    """
    check_arguments(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, k_scales, v_scales)
    _, block_size, num_kv_heads, head_size = k_cache.shape
    if k_cache.dtype == np.float16:  # numba has no such type, so the kernels get the bits
        k_cache, v_cache = k_cache.view(np.int16), v_cache.view(np.int16)  # [num_blocks, block_size, KH, head_size]
    k, v = (a.reshape(-1, num_kv_heads, head_size) for a in (k_cache, v_cache))  # each [num_slots, KH, head_size]
    scales = [None if a is None else a.reshape(-1, num_kv_heads) for a in (k_scales, v_scales)]  # [num_slots, KH]
    out = np.empty(q.shape, q.dtype)  # [num_tokens, num_heads, head_size]
    # The kernel for one query is made for rows of whole vectors, as all common models have them.
    query_lens = query_start_loc[1:] - query_start_loc[:-1]  # [num_seqs]
    is_prefill = query_lens >= (MANY if head_size % LANES == 0 else 1)  # [num_seqs]
    is_decode = (query_lens > 0) & ~is_prefill  # [num_seqs]
    for attend, seqs in ((_decode, np.flatnonzero(is_decode)), (_prefill, np.flatnonzero(is_prefill))):
        if len(seqs):
            attend(
                np.ascontiguousarray(q),
                k,
                v,
                *scales,
                block_size,
                np.ascontiguousarray(block_tables, np.int32),
                np.ascontiguousarray(context_lens, np.int32),
                np.ascontiguousarray(query_start_loc, np.int32),
                seqs,
                q.dtype.type(scale),
                out,
            )
    return out


# ---- decode: a query at a time, its context in pieces


@compiled_parallel
def _decode(q, k, v, k_scales, v_scales, block_size, block_tables, context_lens, query_start_loc, seqs, scale, out):
    pieces = cut_contexts(context_lens, query_start_loc, seqs)  # [num_pieces, 4]
    highest = np.empty((len(pieces), q.shape[1]), q.dtype)  # [num_pieces, num_heads]
    total = np.empty((len(pieces), q.shape[1]), q.dtype)  # [num_pieces, num_heads]
    acc = np.empty((len(pieces), *q.shape[1:]), q.dtype)  # [num_pieces, num_heads, head_size]
    for p in numba.prange(len(pieces)):
        seq, token, start, stop = pieces[p]
        block_table, results = block_tables[seq], (highest[p], total[p], acc[p])
        attend_piece(q[token], k, v, k_scales, v_scales, block_size, block_table, start, stop, scale, *results)
    for p in numba.prange(len(pieces)):
        if pieces[p, 2] == 0:  # the first piece of a query
            join_pieces(p, pieces, highest, total, acc, out[pieces[p, 1]])


@compiled
def cut_contexts(context_lens, query_start_loc, seqs):
    """[num_pieces, 4]: (sequence, query, start, stop); what a query sees, cut every PIECE tokens."""
    num_pieces = 0
    for seq in seqs:
        num_queries = query_start_loc[seq + 1] - query_start_loc[seq]
        num_pieces += num_queries * (context_lens[seq] // PIECE + 1)  # or a few less
    pieces = np.empty((num_pieces, 4), np.int64)  # [num_pieces, 4]
    p = 0
    for seq in seqs:
        # The last query of a sequence sees its whole context, the one before it one token less, and so on.
        for token in range(query_start_loc[seq], query_start_loc[seq + 1]):
            visible = context_lens[seq] - (query_start_loc[seq + 1] - 1 - token)
            for start in range(0, visible, PIECE):
                pieces[p, 0], pieces[p, 1], pieces[p, 2], pieces[p, 3] = seq, token, start, min(start + PIECE, visible)
                p += 1
    return pieces[:p]


@compiled
def attend_piece(q, k, v, k_scales, v_scales, block_size, block_table, start, stop, scale, highest, total, acc):
    """One query, [num_heads, head_size], looks at the tokens from `start` to `stop` of its context."""
    num_heads = len(q)
    group = num_heads // k.shape[1]
    highest[:], total[:], acc[:] = -np.inf, 0, 0
    slots = np.empty(2 * STEP, np.uint64)  # [2 * STEP]; of this step, and of the next one
    scores = np.empty((num_heads, STEP), q.dtype)  # [num_heads, STEP]; then the weights
    shrink = np.empty(num_heads, q.dtype)  # [num_heads]
    for begin in range(start, stop, STEP):
        find_slots(block_table, block_size, begin, stop, slots)
        if k_scales is not None:
            for j in range(STEP, 2 * STEP):
                prefetch(k_scales, (slots[j], 0)), prefetch(v_scales, (slots[j], 0))
        multiply_keys(q, k, v, slots, scores)
        for h in range(num_heads):
            for j in range(STEP):
                scores[h, j] *= scale if k_scales is None else scale * k_scales[slots[j], h // group]
            num_visible = min(STEP, stop - begin)
            highest[h], total[h], shrink[h] = softmax_step(scores[h], num_visible, highest[h], total[h])
            if v_scales is not None:
                for j in range(STEP):
                    scores[h, j] *= v_scales[slots[j], h // group]
        add_values(scores, k, v, slots, shrink, acc)


@compiled
def find_slots(block_table, block_size, start, stop, slots):
    """slots[j] = that of token start + j, or beyond `stop`, of the last token: somewhere that was written."""
    for j in range(len(slots)):
        token = min(start + j, stop - 1)
        slots[j] = block_table[token // block_size] * block_size + token % block_size


@compiled
def softmax_step(scores, num_visible, highest, total):
    """Turn a row of scores into weights, those from `num_visible` on into 0.

    Gives the new highest and total, and what to multiply everything with that was summed up before.
    """
    new_highest = highest
    for j in range(num_visible):
        new_highest = max(new_highest, scores[j])
    shrink = exp(highest - new_highest)
    new_total = total * shrink
    for j in range(len(scores)):
        scores[j] = exp(scores[j] - new_highest)
    for j in range(num_visible, len(scores)):
        scores[j] = 0
    for j in range(len(scores)):
        new_total += scores[j]
    return new_highest, new_total, shrink


@compiled
def multiply_keys(q, k, v, slots, scores):
    """scores[h, j] = q[h] . k[slots[j], its head], for four slots at a time, as their rows lie in memory.

    Meanwhile the same rows of v are fetched into the cache.
    """
    num_kv_heads, head_size = k.shape[1:]
    group = len(q) // num_kv_heads
    for j in range(0, STEP, 4):
        slot0, slot1, slot2, slot3 = slots[j], slots[j + 1], slots[j + 2], slots[j + 3]
        for kv_head in range(num_kv_heads):
            for d in range(0, head_size, LANES):
                prefetch(v, (slot0, kv_head, d)), prefetch(v, (slot1, kv_head, d))
                prefetch(v, (slot2, kv_head, d)), prefetch(v, (slot3, kv_head, d))
            for h in range(kv_head * group, (kv_head + 1) * group):
                sum0 = sum1 = sum2 = sum3 = filled(q.dtype.type(0))
                for d in range(0, head_size, LANES):
                    row = load(q, (h, d))
                    sum0 = fma(sum0, row, load(k, (slot0, kv_head, d)))
                    sum1 = fma(sum1, row, load(k, (slot1, kv_head, d)))
                    sum2 = fma(sum2, row, load(k, (slot2, kv_head, d)))
                    sum3 = fma(sum3, row, load(k, (slot3, kv_head, d)))
                scores[h, j], scores[h, j + 1] = total_of(sum0), total_of(sum1)
                scores[h, j + 2], scores[h, j + 3] = total_of(sum2), total_of(sum3)


@compiled
def add_values(weights, k, v, slots, shrink, acc):
    """acc[h] = acc[h] * shrink[h] + the sum over j of weights[h, j] * v[slots[j], its head]

    Meanwhile the rows of k for the next step are fetched into the cache.
    """
    num_heads, head_size = acc.shape
    group = num_heads // v.shape[1]
    for h in range(num_heads):
        kv_head = h // group
        for d in range(0, head_size, LANES):
            values = fma(filled(acc.dtype.type(0)), shrink[h], load(acc, (h, d)))
            for j in range(STEP):
                values = fma(values, weights[h, j], load(v, (slots[j], kv_head, d)))
                if h % group == 0:
                    prefetch(k, (slots[STEP + j], kv_head, d))
            store(acc, (h, d), values)


@compiled
def join_pieces(first, pieces, highest, total, acc, out):
    """The results of the pieces of one query, of which `first` is the first -> out [num_heads, head_size]"""
    stop = first + 1
    while stop < len(pieces) and pieces[stop, 2] > 0:
        stop += 1
    for h in range(len(out)):
        new_highest, new_total = out.dtype.type(-np.inf), out.dtype.type(0)
        for d in range(out.shape[1]):
            out[h, d] = 0
        for p in range(first, stop):
            both = max(new_highest, highest[p, h])
            shrink, weight = exp(new_highest - both), exp(highest[p, h] - both)
            new_highest, new_total = both, new_total * shrink + total[p, h] * weight
            for d in range(out.shape[1]):
                out[h, d] = out[h, d] * shrink + acc[p, h, d] * weight
        for d in range(out.shape[1]):
            out[h, d] /= new_total


# ---- prefill: tiles of queries against tiles of keys


@compiled_parallel
def _prefill(q, k, v, k_scales, v_scales, block_size, block_tables, context_lens, query_start_loc, seqs, scale, out):
    tiles = cut_queries(query_start_loc, seqs)  # [num_tiles, 3]
    for item in numba.prange(k.shape[1] * len(tiles)):  # heads vary slowest: each thread gets a share of every text
        kv_head = item // len(tiles)
        seq, begin, end = tiles[item % len(tiles)]
        visible = context_lens[seq] - (query_start_loc[seq + 1] - end)  # to the last query of the tile
        queries, block_table = q[begin:end], block_tables[seq]
        attend_tile(queries, k, v, k_scales, v_scales, block_size, block_table, visible, kv_head, scale, out[begin:end])


@compiled
def cut_queries(query_start_loc, seqs):
    """[num_tiles, 3]: (sequence, begin, end); its queries, cut after every QUERIES."""
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
def attend_tile(q, k, v, k_scales, v_scales, block_size, block_table, visible, kv_head, scale, out):
    """Queries that follow each other, [queries, num_heads, head_size], in the heads that share a head of K and V.

    The last of them sees `visible` tokens, the one before it one less, and so on.
    """
    num_queries, num_heads, head_size = q.shape
    group = num_heads // k.shape[1]
    num_rows = num_queries * group  # a row: a query in one of the heads
    width = -(-head_size // (2 * LANES)) * 2 * LANES  # of a row, with zeros behind it
    rows = np.zeros((QUERIES * group, width), q.dtype)  # [rows, width]
    for r in range(num_rows):
        for d in range(head_size):
            rows[r, d] = q[r // group, kv_head * group + r % group, d] * scale
    slots = np.empty(KEYS, np.uint64)  # [KEYS]
    keys = np.zeros((KEYS, width), q.dtype)  # [KEYS, width]
    keys_transposed = np.empty((head_size, KEYS), q.dtype)  # [head_size, KEYS]
    values = np.zeros((KEYS, width), q.dtype)  # [KEYS, width]
    scores = np.zeros((len(rows), KEYS), q.dtype)  # [rows, KEYS]; then the weights
    highest = np.full(len(rows), -np.inf, q.dtype)  # [rows]
    total = np.zeros(len(rows), q.dtype)  # [rows]
    acc = np.zeros(rows.shape, q.dtype)  # [rows, width]
    for start in range(0, visible, KEYS):
        find_slots(block_table, block_size, start, visible, slots)
        gather(k, k_scales, slots, kv_head, keys)
        gather(v, v_scales, slots, kv_head, values)
        for d in range(head_size):
            for j in range(KEYS):
                keys_transposed[d, j] = keys[j, d]
        begin = max(0, start - (visible - num_queries)) * group  # rows before this one see none of these keys
        scores[begin:] = 0
        add_product(rows, keys_transposed, begin, num_rows, scores)
        for r in range(begin, num_rows):
            num_visible = min(KEYS, visible - num_queries + 1 + r // group - start)
            if num_visible > 0:
                highest[r], total[r], shrink = softmax_step(scores[r], num_visible, highest[r], total[r])
                for d in range(width):
                    acc[r, d] *= shrink
            else:
                scores[r] = 0
        add_product(scores, values, begin, num_rows, acc)
    for r in range(num_rows):
        for d in range(head_size):
            out[r // group, kv_head * group + r % group, d] = acc[r, d] / total[r]


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


@compiled
def add_product(a, b, start, stop, c, coming=None):
    """c += a @ b, from row `start` to `stop`: a [rows, n], b [n, m], c [rows, m]; m is a multiple of 2 * LANES.

    A number that is loaded is used often: a pair of vectors of b for four rows, eight sums held in registers. Where
    there are fewer than four rows left, the last one is computed several times. `coming`, the b of the next product, is
    fetched from memory meanwhile, spread evenly over all rows.
    """
    stretch = (
        len(b) if coming is None else max(2, (stop - start + 3) // 4)
    )  # so many numbers of a row for one row of `coming`
    fetched = 0
    for r in range(start, stop, 4):
        s, t, u = min(r + 1, stop - 1), min(r + 2, stop - 1), min(r + 3, stop - 1)
        for d in range(0, b.shape[1], 2 * LANES):
            e = d + LANES
            rd, sd, td, ud = load(c, (r, d)), load(c, (s, d)), load(c, (t, d)), load(c, (u, d))
            re, se, te, ue = load(c, (r, e)), load(c, (s, e)), load(c, (t, e)), load(c, (u, e))
            for begin in range(0, len(b), stretch):
                if coming is not None:
                    prefetch(coming, (min(fetched, len(b) - 1), d)), prefetch(coming, (min(fetched, len(b) - 1), e))
                    fetched += 1
                for i in range(begin, min(begin + stretch, len(b))):
                    bd, be = load(b, (i, d)), load(b, (i, e))
                    rd, re = fma(rd, a[r, i], bd), fma(re, a[r, i], be)
                    sd, se = fma(sd, a[s, i], bd), fma(se, a[s, i], be)
                    td, te = fma(td, a[t, i], bd), fma(te, a[t, i], be)
                    ud, ue = fma(ud, a[u, i], bd), fma(ue, a[u, i], be)
            store(c, (r, d), rd), store(c, (s, d), sd), store(c, (t, d), td), store(c, (u, d), ud)
            store(c, (r, e), re), store(c, (s, e), se), store(c, (t, e), te), store(c, (u, e), ue)
