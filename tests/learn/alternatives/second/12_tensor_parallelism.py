"""Lesson 12 in a third style: indices instead of slices, a matrix that picks, and a tree for the sum."""

import numpy as np


def mine(total, rank, size):
    return np.flatnonzero(np.arange(total) * size // total == rank)


def split_columns(weight, bias, rank, size):
    columns = mine(len(bias), rank, size)
    return weight.take(columns, axis=1), bias.take(columns)


def split_rows(weight, bias, rank, size):
    return np.array([weight[i] for i in mine(len(weight), rank, size)]), np.array(
        [b if rank == 0 else 0.0 for b in bias]
    )


def split_heads(weight, bias, num_heads, rank, size):
    heads = mine(num_heads, rank, size)
    columns = np.arange(weight.shape[1]).reshape(3, num_heads, -1)[:, heads].ravel()
    picked = np.vstack([weight, bias])[:, columns]
    return picked[:-1], picked[-1]


def all_reduce(parts):
    def total(some):
        if len(some) == 1:
            return some[0] + 0
        half = len(some) // 2
        return np.add(total(some[:half]), total(some[half:]))

    return [np.array(total(parts)) for _ in parts]
