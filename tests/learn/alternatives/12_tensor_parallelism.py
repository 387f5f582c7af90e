"""Lesson 12 in another style: NumPy's own splitting, and a ring for the sum."""

import numpy as np


def split_columns(weight, bias, rank, size):
    return np.split(weight, size, axis=1)[rank], np.split(bias, size)[rank]


def split_rows(weight, bias, rank, size):
    return np.split(weight, size)[rank], bias * (rank == 0)


def split_heads(weight, bias, num_heads, rank, size):
    thirds = [split_columns(w, b, rank, size) for w, b in zip(np.split(weight, 3, axis=1), np.split(bias, 3))]
    weights, biases = zip(*thirds)
    return np.hstack(weights), np.hstack(biases)


def all_reduce(parts):
    sums = [part.astype(part.dtype) for part in parts]
    passing = list(parts)
    for _ in range(len(parts) - 1):
        passing = [passing[i - 1] for i in range(len(parts))]
        sums = [mine + theirs for mine, theirs in zip(sums, passing)]
    return sums
