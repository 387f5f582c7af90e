"""Lesson 1 in a third style: exact fractions, NumPy's numbers, and recursion."""

from fractions import Fraction

import numpy as np


def reserved_waste(lengths, max_len):
    return 1 - Fraction(sum(lengths), max_len * len(lengths)) if lengths else Fraction(0)


def paged_waste(lengths, block_size):
    lengths = np.array(lengths, dtype=np.int64)
    taken = (np.ceil(lengths / block_size) * block_size).sum()
    return (taken - lengths.sum()) / taken if taken else np.float64(0)


def how_many_fit(needed, num_slots):
    if not needed or needed[0] > num_slots:
        return np.int64(0)
    return 1 + how_many_fit(needed[1:], num_slots - needed[0])
