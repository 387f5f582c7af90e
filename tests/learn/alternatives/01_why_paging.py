"""Lesson 1 in another style: fractions, and running sums."""

from fractions import Fraction
from itertools import accumulate


def reserved_waste(lengths, max_len):
    if not lengths:
        return 0.0
    return float(1 - Fraction(sum(lengths), max_len * len(lengths)))


def paged_waste(lengths, block_size):
    holes = [-length % block_size for length in lengths]
    slots = sum(holes) + sum(lengths)
    return sum(holes) / slots if slots else 0.0


def how_many_fit(needed, num_slots):
    return sum(total <= num_slots for total in accumulate(needed))
