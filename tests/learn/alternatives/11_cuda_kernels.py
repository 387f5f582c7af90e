"""Lesson 11 in another style: the thread's number by hand, block by block, and two passes, not an online softmax."""

import math

from numba import cuda


def thread_number():
    return cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x


def copy_blocks_kernel(cache, sources, destinations):
    copy, number = divmod(thread_number(), cache.shape[1])
    if copy >= sources.shape[0]:
        return
    value = cache[sources[copy], number]
    cache[destinations[copy], number] = value


def paged_attention_kernel(q, k_cache, v_cache, block_tables, context_lens, scale, out):
    s, h = divmod(thread_number(), q.shape[1])
    if s >= q.shape[0]:
        return
    size, length = k_cache.shape[1], context_lens[s]
    kv = h // (q.shape[1] // k_cache.shape[2])
    top = -math.inf
    for t in range(length):
        top = max(top, score_of(q, k_cache, s, h, kv, block_tables[s, t // size], t % size) * scale)
    total = 0.0
    for d in range(q.shape[2]):
        out[s, h, d] = 0.0
    for t in range(length):
        block = block_tables[s, t // size]
        weight = math.exp(score_of(q, k_cache, s, h, kv, block, t % size) * scale - top)
        total += weight
        for d in range(q.shape[2]):
            out[s, h, d] += weight * v_cache[block, t % size, kv, d]
    for d in range(q.shape[2]):
        out[s, h, d] = out[s, h, d] / total


def score_of(q, k_cache, s, h, kv, block, offset):
    score = 0.0
    for d in range(q.shape[2]):
        score += q[s, h, d] * k_cache[block, offset, kv, d]
    return score


def place(row, piece):
    """Moved along, not XOR."""
    return 8 * row + (piece + row) % 8


def first_race(events):
    earlier = []
    for j, (thread, deed, place) in enumerate(events):
        barriers = sum(1 for t, d, _ in events[:j] if t == thread and d == "waits")
        if deed != "waits":
            now = thread, deed, place, barriers
            for i, then in earlier:
                if races(then, now):
                    return i, j
            earlier.append((j, now))


def races(then, now):
    is_written = then[1] == "writes" or now[1] == "writes"
    return then[0] != now[0] and then[2] == now[2] and then[3] == now[3] and is_written
