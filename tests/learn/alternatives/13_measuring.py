"""Lesson 13 in another style: NumPy and the standard library."""

from math import ceil
from statistics import fmean

import numpy as np


def percentile(values, percent):
    if len(values) == 0:
        raise ValueError("nothing was measured")
    return float(np.percentile(values, percent))


def throughput(served):
    arrivals, _, ends, tokens = zip(*served)
    return sum(tokens) / (max(ends) - min(arrivals))


def normalised_latency(served):
    return fmean((end - arrival) / tokens for arrival, _, end, tokens in served)


def capacity(memory, bytes_per_token, block_size, num_tokens):
    blocks_there = memory // bytes_per_token // block_size
    blocks_each = ceil(num_tokens / block_size)
    return blocks_there // blocks_each


def histogram_percentile(buckets, percent):
    bounds, counts = np.array(buckets, float).T
    if counts[-1] == 0:
        raise ValueError("all buckets are empty")
    place = percent * counts[-1] / 100
    i = int(np.searchsorted(counts, place))
    if np.isinf(bounds[i]):
        return bounds[i - 1]
    corners = np.concatenate([[0], bounds])
    begin = counts[i - 1] if i else 0
    return corners[i] + (place - begin) / (counts[i] - begin) * (corners[i + 1] - corners[i])


def littles_law(before, after, seconds):
    name = "vllm:e2e_request_latency_seconds"
    number, time = (after[name + end] - before[name + end] for end in ("_count", "_sum"))
    return [number / seconds, time / number if number else 0, time / seconds]


class Router:
    """Each server's blocks in a dictionary by hash; a prompt is followed by looking through them."""

    def __init__(self, block_size, most_ahead):
        self.size, self.most_ahead = block_size, most_ahead
        self.blocks = {}

    def stored(self, server, block_hash, parent, token_ids):
        self.blocks.setdefault(server, {})[block_hash] = (parent, [*token_ids])

    def removed(self, server, block_hash):
        del self.blocks[server][block_hash]

    def known(self, server, tokens, parent=None):
        for block_hash, block in self.blocks.get(server, {}).items():
            if block == (parent, tokens[: self.size]):
                return 1 + self.known(server, tokens[self.size :], block_hash)
        return 0

    def choose(self, token_ids, loads):
        least = min(loads.values())
        rows = [
            (-self.known(server, token_ids), load, server)
            for server, load in loads.items()
            if load - least <= self.most_ahead
        ]
        return min(rows)[2]
