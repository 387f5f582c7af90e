"""Lesson 17 in a third style: slots with a time at which they were wanted, and a table that fills block by block."""

from collections import namedtuple
from itertools import count

from minipage.memory import BlockTable


class Tier:
    def __init__(self, store):
        self.store, self.now = store, count()
        self.hashes = [None] * store.num_slots
        self.times = [-1] * store.num_slots

    def save(self, block_hash, block):
        if block_hash in self.hashes:
            self.times[self.hashes.index(block_hash)] = next(self.now)
        elif self.hashes:
            slot = min(range(len(self.hashes)), key=self.times.__getitem__)
            self.hashes[slot], self.times[slot] = None, -1
            self.store.save(slot, block)
            self.hashes[slot], self.times[slot] = block_hash, next(self.now)

    def load(self, block_hash, block):
        if block_hash not in self.hashes:
            return False
        slot = self.hashes.index(block_hash)
        fine = self.store.load(slot, block)
        self.times[slot] = next(self.now) if fine else -1
        if not fine:
            self.hashes[slot] = None
        return fine


Handover = namedtuple("Handover", "num_tokens contents")


def hand_over(table, read):
    contents = []
    for block in table:
        contents.append(read(block))
    return Handover(table.num_tokens, contents)


def take_over(pool, handover, write):
    table = BlockTable(pool)
    table.append(handover.num_tokens)
    try:
        [write(*pair) for pair in zip(table, handover.contents)]
    except BaseException:
        table.free()
        raise
    return table
