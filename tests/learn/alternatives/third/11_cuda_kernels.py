"""Lesson 11 in a fourth style: slices to set and to copy, enumerate, a helper that is compiled for any device, and in
place of the highest score and the sum a single number, the logarithm of the sum: `out` is a mean at any time."""

import math

from numba import cuda, njit


@njit
def softer(log_total, score):
    top = max(log_total, score)
    new = top + math.log(math.exp(log_total - top) + math.exp(score - top))
    return new, math.exp(log_total - new), math.exp(score - new)


@cuda.jit(device=True)
def add(weighted, values, shrink, weight):
    for d, value in enumerate(values):
        weighted[d] = weighted[d] * shrink + weight * value


def copy_blocks_kernel(cache, sources, destinations):
    i, (_, n) = cuda.grid(1), cache.shape
    if i // n < len(sources):
        source, destination = sources[i // n], destinations[i // n]
        part = slice(i % n, i % n + 1)
        cache[destination, part] = cache[source, part]


def paged_attention_kernel(q, k_cache, v_cache, block_tables, context_lens, scale, out):
    seq, head = divmod(cuda.grid(1), q.shape[1])
    if seq >= len(q):
        return
    mine, table = out[seq, head], block_tables[seq]
    mine[:] = 0.0
    kv = head // (q.shape[1] // k_cache.shape[2])
    log_total = -math.inf
    for token in range(context_lens[seq]):
        block, offset = table[token // k_cache.shape[1]], token % k_cache.shape[1]
        keys, score = k_cache[block, offset, kv], 0.0
        for d in range(keys.shape[0]):
            score += q[seq][head][d] * keys[d]
        log_total, shrink, weight = softer(log_total, score * scale)
        add(mine, v_cache[block, offset, kv], shrink, weight)


def place(row, piece):
    """Each 8 rows have orders of their own."""
    rows, r = divmod(row, 8)
    return (rows * 8 + r) * 8 + (3 * piece + 5 * r + rows ^ rows) % 8


def first_race(events):
    """With a class."""
    log = []
    epochs = {}
    for event in events:
        thread, deed, place = event
        epochs.setdefault(thread, 0)
        epochs[thread] += deed == "waits"
        log.append(Access(thread, deed, place, epochs[thread]))
    for later in range(len(log)):
        for earlier in range(later):
            if log[earlier].meets(log[later]):
                return (earlier, later)
    return None


class Access:
    def __init__(self, *what):
        self.thread, self.deed, self.place, self.epoch = what

    def meets(self, other):
        if self.place is None or self.place != other.place or self.epoch != other.epoch:
            return False
        return self.thread != other.thread and not self.deed == other.deed == "reads"
