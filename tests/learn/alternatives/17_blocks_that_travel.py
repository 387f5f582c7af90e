"""Lesson 17 in another style: a plain dictionary in order of use, and a clock for nothing."""

from typing import Any, NamedTuple

from minipage.memory import BlockTable


class Tier:
    def __init__(self, store):
        self.store = store
        self.slots = {}  # hash -> slot; Python's dictionaries remember the order in which keys came

    def wanted(self, block_hash):
        self.slots[block_hash] = self.slots.pop(block_hash)

    def free_slot(self):
        taken = set(self.slots.values())
        free = [slot for slot in range(self.store.num_slots) if slot not in taken]
        if not free and taken:
            oldest = next(iter(self.slots))
            free = [self.slots.pop(oldest)]
        return free[0] if free else None

    def save(self, block_hash, block):
        if block_hash in self.slots:
            self.wanted(block_hash)
            return
        slot = self.free_slot()
        if slot is not None:
            self.store.save(slot, block)
            self.slots[block_hash] = slot

    def load(self, block_hash, block):
        slot = self.slots.get(block_hash)
        if slot is None:
            return False
        if self.store.load(slot, block):
            self.wanted(block_hash)
            return True
        del self.slots[block_hash]
        return False


class Handover(NamedTuple):
    num_tokens: int
    contents: list[Any]


def hand_over(table, read):
    return Handover(table.num_tokens, list(map(read, table.blocks)))


def take_over(pool, handover, write):
    table = BlockTable(pool)
    table.append(handover.num_tokens)
    done = False
    try:
        for i, block in enumerate(table.blocks):
            write(block, handover.contents[i])
        done = True
    finally:
        if not done:
            table.free()
    return table
