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
