"""Lesson 11, solved. (minipage's own kernels are in minipage/attention/cuda, and `swizzled` is in wgmma.py;
minipage/ladder leads up to them.)"""

from __future__ import annotations

import math

from numba import cuda


def copy_blocks_kernel(cache, sources, destinations):
    i = cuda.grid(1)
    n = cache.shape[1]
    if i < len(sources) * n:
        copy, number = i // n, i % n
        cache[destinations[copy], number] = cache[sources[copy], number]


def paged_attention_kernel(q, k_cache, v_cache, block_tables, context_lens, scale, out):
    i = cuda.grid(1)
    num_seqs, num_heads, head_size = q.shape
    if i >= num_seqs * num_heads:
        return
    seq, head = i // num_heads, i % num_heads
    block_size, num_kv_heads = k_cache.shape[1], k_cache.shape[2]
    kv_head = head // (num_heads // num_kv_heads)
    highest, total = -math.inf, 0.0
    for d in range(head_size):
        out[seq, head, d] = 0.0
    for token in range(context_lens[seq]):
        block, offset = block_tables[seq, token // block_size], token % block_size
        score = 0.0
        for d in range(head_size):
            score += q[seq, head, d] * k_cache[block, offset, kv_head, d]
        score *= scale
        new_highest = max(highest, score)
        shrink, weight = math.exp(highest - new_highest), math.exp(score - new_highest)
        total = total * shrink + weight
        for d in range(head_size):
            out[seq, head, d] = out[seq, head, d] * shrink + weight * v_cache[block, offset, kv_head, d]
        highest = new_highest
    for d in range(head_size):
        out[seq, head, d] /= total


def place(row, piece):
    column = (piece ^ row) % 8
    return 8 * row + column


def first_race(events):
    passed, earlier = {}, []  # barriers of each thread; (number, thread, deed, place, barriers it had passed)
    for j, (thread, deed, place) in enumerate(events):
        if deed == "waits":
            passed[thread] = passed.get(thread, 0) + 1
            continue
        barriers = passed.get(thread, 0)
        for i, other, other_deed, other_place, other_barriers in earlier:
            meet = other != thread and other_place == place and other_barriers == barriers
            if meet and "writes" in (deed, other_deed):
                return i, j
        earlier.append((j, thread, deed, place, barriers))
    return None
