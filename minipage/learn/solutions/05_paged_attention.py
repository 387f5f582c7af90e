"""Lesson 5, solved: paged attention in NumPy. (minipage's own is minipage/attention/reference.py.)"""

from __future__ import annotations

import numpy as np


def gather(cache, block_table, context_len):
    block_size = cache.shape[1]
    blocks = block_table[: -(-context_len // block_size)]  # [blocks of this sequence]
    return cache[blocks].reshape(-1, *cache.shape[2:])[:context_len]  # [context_len, KH, D]


def attend(q, k, v, scale):
    group = q.shape[0] // k.shape[1]
    k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)  # each [n, H, D]
    scores = np.einsum("hd,nhd->hn", q, k) * scale  # [H, n]
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))  # [H, n]
    weights /= weights.sum(axis=1, keepdims=True)  # [H, n]
    return np.einsum("hn,nhd->hd", weights, v)  # [H, D]


def paged_attention(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale):
    out = np.empty_like(q)  # [num_tokens, H, D]
    for s, context_len in enumerate(context_lens):
        k = gather(k_cache, block_tables[s], context_len)  # [context_len, KH, D]
        v = gather(v_cache, block_tables[s], context_len)  # [context_len, KH, D]
        first, last = query_start_loc[s], query_start_loc[s + 1]
        for row in range(first, last):
            visible = context_len - (last - row) + 1  # itself, and all before it
            out[row] = attend(q[row], k[:visible], v[:visible], scale)  # [H, D]
    return out


def online_attention(q, k_blocks, v_blocks, scale):
    num_heads = q.shape[0]
    highest = np.full(num_heads, -np.inf)  # [H]
    total = np.zeros(num_heads)  # [H]
    weighted = np.zeros(q.shape)  # [H, D]
    for k, v in zip(k_blocks, v_blocks, strict=True):
        scores = np.einsum("hd,mhd->hm", q, k) * scale  # [H, m]
        new_highest = np.maximum(highest, scores.max(axis=1))  # [H]
        shrink = np.exp(highest - new_highest)  # [H]; 0 at first
        weights = np.exp(scores - new_highest[:, None])  # [H, m]
        total = total * shrink + weights.sum(axis=1)  # [H]
        weighted = weighted * shrink[:, None] + np.einsum("hm,mhd->hd", weights, v)  # [H, D]
        highest = new_highest
    return weighted / total[:, None]  # [H, D]
