"""Paged attention in plain NumPy: gather each sequence's K and V through its block table, then ordinary attention.

This is the version to read first, and the one the fast kernels are tested against. What it costs is the gathering: it
copies K and V, which the fast kernels never do, and it holds all scores at once.
"""

from __future__ import annotations

import numpy as np

from minipage.attention.arguments import check_arguments
from minipage.attention.quantize import numbers_of
from minipage.simd.arrays import Floats, Integers


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
    block_tables, context_lens, query_start_loc = tables
    num_heads, (_, block_size, num_kv_heads, head_size) = q.shape[1], k_cache.shape
    out = np.empty(q.shape, q.dtype)  # [num_tokens, num_heads, head_size]
    if out.size == 0:
        return out
    for s, context_len in enumerate(context_lens):
        rows = slice(query_start_loc[s], query_start_loc[s + 1])
        first = max(0, context_len - len(q[rows]) + 1 - window)  # of the tokens that any of its queries sees
        blocks = block_tables[s, first // block_size : -(-context_len // block_size)]  # [blocks]
        # k and v: each [blocks, block_size, num_kv_heads, head_size]
        k = numbers_of(k_cache[blocks], None if k_scales is None else k_scales[blocks])
        v = numbers_of(v_cache[blocks], None if v_scales is None else v_scales[blocks])
        keys = slice(first % block_size, first % block_size + context_len - first)  # of the tokens in these blocks
        k, v = (a.reshape(-1, num_kv_heads, head_size)[keys] for a in (k, v))  # each [keys, num_kv_heads, head_size]
        k, v = (a.repeat(num_heads // num_kv_heads, axis=1) for a in (k, v))  # each [keys, num_heads, head_size]
        scores = np.einsum("qhd,khd->hqk", q[rows], k) * scale  # [num_heads, queries, keys]
        key_positions = np.arange(first, context_len)  # [keys]
        query_positions = np.arange(context_len - len(q[rows]), context_len)[:, None]  # [queries, 1]; the last tokens
        visible = (query_positions - window < key_positions) & (key_positions <= query_positions)  # [queries, keys]
        scores = np.where(visible, scores, -np.inf)  # [num_heads, queries, keys]
        highest = scores.max(axis=-1, keepdims=True, initial=-np.inf)  # [num_heads, queries, 1]
        weights = np.exp(scores - highest)  # [num_heads, queries, keys]
        weights /= weights.sum(axis=-1, keepdims=True)  # [num_heads, queries, keys]
        out[rows] = np.einsum("hqk,khd->qhd", weights, v)  # [queries, num_heads, head_size]
    return out
