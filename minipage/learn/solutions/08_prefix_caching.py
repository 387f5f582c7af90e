"""Lesson 8, solved: minipage's own prefix cache; parts of blocks, and an eviction order, in small."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from itertools import chain

from minipage.memory import BlockCopy, BlockPool, BlockTable, PrefixCache

__all__ = ["Parts", "PrefixCache", "ScanResistant"]


class Parts:
    def __init__(self, pool: BlockPool, unit: int, block_hash: Callable[[bytes, Sequence[int]], bytes]) -> None:
        self.pool = pool
        self.unit = unit
        self.block_hash = block_hash
        self.part_of: dict[bytes, tuple[int, int]] = {}

    def walk(self, parent: bytes, token_ids: Sequence[int]) -> Iterator[tuple[bytes, int]]:
        for stop in range(self.unit, min(len(token_ids), self.pool.block_size - 1) + 1, self.unit):
            parent = self.block_hash(parent, token_ids[stop - self.unit : stop])
            yield parent, stop

    def publish(self, block: int, parent: bytes, token_ids: Sequence[int]) -> None:
        for part_hash, num_tokens in self.walk(parent, token_ids):
            self.part_of[part_hash] = block, num_tokens

    def find(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int] | None:
        found = None
        for part_hash, _ in self.walk(parent, token_ids[:-1]):
            found = self.part_of.get(part_hash, found)
        return found

    def adopt(self, table: BlockTable, source: int, num_tokens: int) -> list[BlockCopy]:
        if self.pool.ref_count(source) == 0:
            self.pool.revive(source)
            self.pool.free(source)
        new = self.pool.allocate()
        table.blocks.append(new)
        table.num_tokens += num_tokens
        return [BlockCopy(source, new)]

    def forget(self, block: int) -> None:
        self.part_of = {part_hash: part for part_hash, part in self.part_of.items() if part[0] != block}


class ScanResistant(MutableMapping[int, None]):
    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.new: OrderedDict[int, None] = OrderedDict()
        self.found: OrderedDict[int, None] = OrderedDict()
        self.again: set[int] = set()

    def __setitem__(self, block: int, value: None) -> None:
        queue = self.found if block in self.again else self.new
        queue[block] = None
        if len(self.found) > self.pool.num_blocks // 2:
            oldest, _ = self.found.popitem(last=False)
            self.again.discard(oldest)
            self.new[oldest] = None

    def pop(self, block: int) -> None:
        self.take(block)
        self.again.add(block)

    def __delitem__(self, block: int) -> None:
        self.take(block)
        self.again.discard(block)

    def take(self, block: int) -> None:
        del (self.found if block in self.found else self.new)[block]

    def __iter__(self) -> Iterator[int]:
        return chain(self.new, self.found)

    def __len__(self) -> int:
        return len(self.new) + len(self.found)

    def __getitem__(self, block: int) -> None:
        return self.new[block] if block in self.new else self.found[block]
