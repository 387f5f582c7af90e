"""Lesson 13 in a third style: fractions, arrays, and a recursion that takes requests away."""

from fractions import Fraction

import numpy as np


def percentile(values, percent):
    if not values:
        raise ValueError("no values")
    values = sorted(map(Fraction, values))
    place = Fraction(len(values) - 1) * Fraction(percent) / 100
    rest = place % 1
    return values[int(place)] * (1 - rest) + values[-int(-place // 1)] * rest


def throughput(served):
    table = np.array(served, dtype=float)
    return table[:, 3].sum() / np.ptp(table[:, [0, 2]])


def normalised_latency(served):
    first, *others = served
    own = (first.finished - first.arrival) / first.num_tokens
    return own if not others else (own + len(others) * normalised_latency(others)) / len(served)


def capacity(memory, bytes_per_token, block_size, num_tokens):
    block = bytes_per_token * block_size
    return np.int64(memory) // block // (1 + (num_tokens - 1) // block_size)


def histogram_percentile(buckets, percent):
    number = buckets[-1][1]
    if number < 1:
        raise ValueError("there is nothing in any bucket")
    edges = [0] + [bound for bound, _ in buckets]
    counts = [0] + [count for _, count in buckets]
    for i in range(1, len(edges)):
        if 100 * counts[i] >= percent * number:
            break
    if i == len(edges) - 1:
        return edges[-2]
    share = (percent * number / 100 - counts[i - 1]) / (counts[i] - counts[i - 1])
    return (1 - share) * edges[i - 1] + share * edges[i]


def littles_law(before, after, seconds):
    grown = {name: after[name] - before[name] for name in before}
    ended = grown["vllm:e2e_request_latency_seconds_count"]
    together = grown["vllm:e2e_request_latency_seconds_sum"]
    if ended == 0:
        return (0, 0, 0)
    return (ended / seconds, together / ended, together / seconds)


class Router:
    """Whole prefixes: what lies before a block is looked up when a prompt comes, from its end to its beginning."""

    def __init__(self, block_size, most_ahead):
        self.block_size = block_size
        self.most_ahead = most_ahead
        self.blocks = {}

    def stored(self, server, block_hash, parent, token_ids):
        self.blocks[server, block_hash] = parent, tuple(token_ids)

    def removed(self, server, block_hash):
        self.blocks.pop((server, block_hash))

    def text(self, server, block_hash):
        if block_hash is None:
            return ()
        if (server, block_hash) not in self.blocks:
            return None
        parent, tokens = self.blocks[server, block_hash]
        before = self.text(server, parent)
        return None if before is None else before + tokens

    def choose(self, token_ids, loads):
        length = dict.fromkeys(loads, 0)
        for server, block_hash in self.blocks:
            text = self.text(server, block_hash)
            if server in loads and text is not None and tuple(token_ids[: len(text)]) == text:
                length[server] = max(length[server], len(text))
        best = None
        for server in sorted(loads, reverse=True):
            if loads[server] > min(loads.values()) + self.most_ahead:
                continue
            if best is None or (length[server], -loads[server]) >= (length[best], -loads[best]):
                best = server
        return best
