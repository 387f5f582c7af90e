"""Lesson 5 in a third style: PyTorch where it has the thing already, a masked chunk, and recursion over the blocks."""

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention


def gather(cache, block_table, context_len):
    if context_len == 0:
        return np.zeros((0, *cache.shape[2:]))
    last, rest = divmod(context_len - 1, cache.shape[1])
    return np.concatenate([gather(cache, block_table, last * cache.shape[1]), cache[block_table[last], : rest + 1]])


def attend(q, k, v, scale):
    return chunk(q[None], k, v, scale)[0]


def chunk(q, k, v, scale):
    """q [n, H, D] are the last of the tokens of k and v [T, KH, D]."""
    q, k, v = (torch.tensor(a, dtype=torch.float64).transpose(0, 1) for a in (q, k, v))  # each [heads, tokens, D]
    k, v = (a.repeat_interleave(len(q) // len(a), dim=0) for a in (k, v))  # each [H, T, D]
    n, length = q.shape[1], k.shape[1]
    seen = torch.ones(n, length, dtype=torch.bool).tril(length - n)  # [n, T]
    return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(0, 1).numpy()  # [n, H, D]


def paged_attention(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale):
    out = np.zeros_like(q)
    for table, length, first, last in zip(block_tables, context_lens, query_start_loc, query_start_loc[1:]):
        if first < last:
            k, v = gather(k_cache, table, length), gather(v_cache, table, length)
            out[first:last] = chunk(q[first:last], k, v, scale)
    return out


def online_attention(q, k_blocks, v_blocks, scale):
    def rest(top, total, acc):
        k = next(k_blocks, None)
        if k is None:
            return acc / total[:, None]
        scores = np.einsum("hd,mhd->hm", q.astype(float), k) * scale
        new = np.maximum(top, scores.max(axis=1))
        shrink, weights = np.exp(top - new), np.exp(scores - new[:, None])
        acc = acc * shrink[:, None] + np.einsum("hm,mhd->hd", weights, next(v_blocks))
        return rest(new, total * shrink + weights.sum(axis=1), acc)

    return rest(np.full(len(q), -np.inf), np.zeros(len(q)), np.zeros(q.shape))
