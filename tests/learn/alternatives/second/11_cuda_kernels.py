"""Lesson 11 in a third style: parts of arrays, a local array, functions under cuda.jit, and another name for it;
a table of places, whose numbers are NumPy's."""

import math

import numba
import numpy as np
from numba import cuda as gpu


@gpu.jit(device=True)
def dot(a, b):
    total = 0.0
    for x, y in zip(a, b):
        total += x * y
    return total


@numba.cuda.jit
def copy_blocks_kernel(cache, sources, destinations):
    """A grid-stride loop, which needs no guard."""
    n = cache.shape[1]
    for i in range(gpu.grid(1), sources.size * n, gpu.gridsize(1)):
        row = cache[sources[i // n]]
        cache[destinations[i // n]][i % n] = row[i % n]


def paged_attention_kernel(q, k_cache, v_cache, block_tables, context_lens, scale, out):
    i = numba.cuda.grid(1)
    if i < out.shape[0] * out.shape[1]:
        s, h = i // out.shape[1], i % out.shape[1]
        query, size, kv = q[s, h], k_cache.shape[1], h * k_cache.shape[2] // q.shape[1]
        acc = gpu.local.array(64, numba.float32)
        for d in range(len(query)):
            acc[d] = 0.0
        top, total, left = -math.inf, np.float32(0), context_lens[s]
        for block in block_tables[s]:
            if left <= 0:
                break
            for offset in range(min(size, left)):
                score = dot(query, k_cache[block][offset, kv]) * scale
                new = max(top, score)
                shrink, weight = np.exp(top - new), np.exp(score - new)
                total = total * shrink + weight
                for d in range(len(query)):
                    acc[d] = acc[d] * shrink + weight * v_cache[block, offset, kv][d]
                top = new
            left -= size
        for d in range(len(query)):
            out[s, h][d] = acc[d] / total


PLACES = np.stack([np.roll(np.arange(8 * row, 8 * row + 8), -3 * row) for row in range(64)])  # [64, 8]


def place(row, piece):
    return PLACES[row, piece]


def first_race(events):
    """By place and barrier, all pairs, and the least of them."""
    when = np.zeros(1 + max((thread for thread, *_ in events), default=0), int)
    met, found = {}, []
    for j, (thread, deed, place) in enumerate(events):
        if place is None:
            when[thread] += 1
            continue
        group = met.setdefault((place, when[thread]), [])
        found += [(j, i) for i, other, wrote in group if other != thread and (wrote or deed == "writes")]
        group.append((j, thread, deed == "writes"))
    if found:
        j, i = min(found)
        return np.int64(i), j
    return None
