"""Lesson 17, solved. (minipage's own: `Tier` in memory/offload.py, and engine/handover.py.)"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from minipage.memory import BlockPool, BlockTable


class Tier:
    def __init__(self, store: Any) -> None:
        self.store = store
        self.slot_of: OrderedDict[bytes, int] = OrderedDict()  # least recently wanted first
        self.unused = list(range(store.num_slots))

    def save(self, block_hash: bytes, block: int) -> None:
        if block_hash in self.slot_of:
            self.slot_of.move_to_end(block_hash)
            return
        if not self.unused and self.slot_of:
            self.unused.append(self.slot_of.popitem(last=False)[1])
        if self.unused:
            self.store.save(self.unused[-1], block)
            self.slot_of[block_hash] = self.unused.pop()

    def load(self, block_hash: bytes, block: int) -> bool:
        if block_hash not in self.slot_of:
            return False
        if not self.store.load(self.slot_of[block_hash], block):
            self.unused.append(self.slot_of.pop(block_hash))
            return False
        self.slot_of.move_to_end(block_hash)
        return True


class Handover(NamedTuple):
    num_tokens: int
    contents: list[Any]


def hand_over(table: BlockTable, read: Callable[[int], Any]) -> Handover:
    return Handover(table.num_tokens, [read(block) for block in table.blocks])


def take_over(pool: BlockPool, handover: Handover, write: Callable[[int, Any], None]) -> BlockTable:
    table = BlockTable(pool)
    table.append(handover.num_tokens)
    try:
        for block, contents in zip(table.blocks, handover.contents):
            write(block, contents)
    except BaseException:
        table.free()
        raise
    return table
