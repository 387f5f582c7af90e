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
