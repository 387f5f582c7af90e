"""Lesson 5 in another style: slots instead of blocks, one head at a time, and the online form for everything."""

import math

import numpy as np


def gather(cache, block_table, context_len):
    size = cache.shape[1]
    slots = [int(block_table[i // size]) * size + i % size for i in range(context_len)]
    return cache.reshape(-1, *cache.shape[2:])[slots]


def attend(q, k, v, scale):
    out = np.zeros(q.shape)
    for h in range(len(q)):
        kv = h // (len(q) // k.shape[1])
        out[h] = one_head(q[h], [(k[:, kv], v[:, kv])], scale)
    return out


def one_head(q, blocks, scale):
    top, total, acc = -math.inf, 0.0, 0.0
    for k, v in blocks:
        for key, value in zip(k, v):
            score = float(q @ key) * scale
            if score > top:
                shrink = math.exp(top - score)
                total, acc, top = total * shrink, acc * shrink, score
            weight = math.exp(score - top)
            total, acc = total + weight, acc + weight * value
    return acc / total


def paged_attention(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale):
    rows = []
    for s in range(len(context_lens)):
        ks = gather(k_cache, block_tables[s], context_lens[s])
        vs = gather(v_cache, block_tables[s], context_lens[s])
        mine = q[query_start_loc[s] : query_start_loc[s + 1]]
        for back, query in enumerate(mine[::-1]):
            seen = context_lens[s] - back
            rows.insert(query_start_loc[s], attend(query, ks[:seen], vs[:seen], scale))
    return np.array(rows, q.dtype).reshape(q.shape)


def online_attention(q, k_blocks, v_blocks, scale):
    blocks = [*zip(k_blocks, v_blocks)]
    return np.stack([one_head(q[h], [(k[:, h], v[:, h]) for k, v in blocks], scale) for h in range(len(q))])
