"""Least frequently found first; what nobody has found, the longest freed first."""

from collections import Counter


class Eviction:
    def __init__(self):
        self.times = Counter()

    def found(self, blocks):
        self.times.update(blocks)

    def evicted(self, block):
        del self.times[block]

    def choose(self, free, known):
        known = set(known)
        empty = [block for block in free if block not in known]
        return empty[0] if empty else min(free, key=lambda block: self.times[block])
