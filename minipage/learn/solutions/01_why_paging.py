"""Lesson 1, solved."""

from __future__ import annotations


def reserved_waste(lengths: list[int], max_len: int) -> float:
    reserved = len(lengths) * max_len
    return (reserved - sum(lengths)) / reserved if reserved else 0.0


def paged_waste(lengths: list[int], block_size: int) -> float:
    taken = sum(-(-length // block_size) * block_size for length in lengths)
    return (taken - sum(lengths)) / taken if taken else 0.0


def how_many_fit(needed: list[int], num_slots: int) -> int:
    for count, slots in enumerate(needed):
        num_slots -= slots
        if num_slots < 0:
            return count
    return len(needed)
