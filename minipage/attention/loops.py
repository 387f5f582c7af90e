"""Paged attention in plain loops: what `cpu.py` computes, one token and one number at a time.

Read it between `reference.py`, which gathers K and V, and `cpu.py`, which is made of vectors. There is no trick here:
it is ordinary Python, which numba compiles as it stands, for one thread.

    for each sequence, each of its queries, each head:            attend_batch
        highest, total, acc = -inf, 0, 0
        for each token that the query sees:                       attend
            look up its block in the block table
            score = q . k * scale
            if it is the highest so far: shrink total and acc
            weight = exp(score - highest);   total += weight;   acc += weight * v
        out = acc / total

This is the online softmax (Milakov and Gimelshein, arXiv 1805.02867); lesson 5 leads up to it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from minipage.attention.arguments import QUANTIZED, check_arguments
from minipage.attention.quantize import numbers_of
from minipage.simd.arrays import Floats, Integers, as_they_lie
from minipage.simd.options import compiled


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
    window: int | None = None,
) -> Floats:
    """Attention of a ragged batch over K and V in blocks; arguments, shapes and dtypes: `minipage.attention.arguments`.

    Raises KernelArgumentError if they do not fit together.
    """
    q, k_cache, v_cache, tables, scale, k_scales, v_scales, window = check_arguments(
        q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale, k_scales, v_scales, window
    )
    out = np.empty(q.shape, q.dtype)  # [num_tokens, num_heads, head_size]
    if out.size == 0:
        return out
    meanings = None
    if k_cache.itemsize < 4:  # one or two bytes a number are codes, which have to be looked up
        meanings = meanings_of(k_cache.dtype)  # [256] or [65536]
        unsigned = f"u{k_cache.itemsize}"
        k_cache, v_cache = k_cache.view(unsigned), v_cache.view(unsigned)  # shapes as before
    k_scales, v_scales = (None if a is None else as_they_lie(a) for a in (k_scales, v_scales))
    attend_batch(as_they_lie(q), k_cache, v_cache, *tables, scale, meanings, k_scales, v_scales, window, out)
    return out


@compiled
def attend_batch(
    q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale, meanings, k_scales, v_scales, window, out
):
    """Every query of every sequence, in every head; meanings: of the codes in a narrow cache, or None."""
    num_heads, heads_per_kv = q.shape[1], q.shape[1] // k_cache.shape[2]
    for seq in range(len(context_lens)):
        begin, end = query_start_loc[seq], query_start_loc[seq + 1]
        for row in range(begin, end):
            visible = context_lens[seq] - (end - 1 - row)  # the last query sees the whole context
            for head in range(num_heads):
                attend(
                    q[row, head], k_cache, v_cache, block_tables[seq], visible, head // heads_per_kv, scale,
                    meanings, k_scales, v_scales, window, out[row, head],
                )  # fmt: skip


@compiled
def attend(q, k_cache, v_cache, block_table, visible, kv_head, scale, meanings, k_scales, v_scales, window, out):
    """One query in one head, [head_size], sees the last `window` of the first `visible` tokens; out: [head_size]."""
    block_size, head_size = k_cache.shape[1], len(q)
    highest, total, acc = -np.inf, 0.0, np.zeros(head_size)  # acc: [head_size]
    for token in range(max(0, visible - window), visible):
        place = block_table[token // block_size], token % block_size, kv_head  # block, offset, head
        k, v = k_cache[place], v_cache[place]  # each [head_size]
        score = 0.0
        for d in range(head_size):
            score += q[d] * number(k[d], meanings)
        score *= scale if k_scales is None else scale * k_scales[place]
        if score > highest:  # what was summed up so far was relative to a lower score
            shrink = math.exp(highest - score)
            total *= shrink
            for d in range(head_size):
                acc[d] *= shrink
            highest = score
        weight = math.exp(score - highest)
        total += weight
        weight *= 1 if v_scales is None else v_scales[place]
        for d in range(head_size):
            acc[d] += weight * number(v[d], meanings)
    for d in range(head_size):
        out[d] = acc[d] / total


@compiled
def number(stored, meanings):
    """What is kept in a cache, as a number; still without the scale of its row."""
    return stored if meanings is None else meanings[stored]


@cache
def meanings_of(dtype: npt.DTypeLike) -> npt.NDArray[np.float32]:
    """[256] or [65536] the number that each code of a cache of this dtype stands for, before its row's scale."""
    dtype = np.dtype(dtype)
    codes = np.arange(256**dtype.itemsize).astype(f"u{dtype.itemsize}").view(dtype)  # [256] or [65536]
    one: Any = np.ones(1, np.float32) if dtype in QUANTIZED else None  # [1]
    meanings: npt.NDArray[np.float32] = numbers_of(codes[None], one)[0]  # [256] or [65536]
    return meanings
