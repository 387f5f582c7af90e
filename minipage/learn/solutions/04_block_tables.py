"""Lesson 4, solved: a block table that knows nothing of sharing. (minipage's own is this and lesson 7 in one.)"""

from __future__ import annotations

from collections.abc import Iterator

from minipage.errors import ConfigurationError
from minipage.memory import BlockCopy, BlockPool
from minipage.memory import BlockTable as SharingBlockTable


def blocks_needed(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


class BlockTable:
    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self.num_tokens = 0
        self.block_hashes: list[bytes] = []

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.blocks)

    def blocks_to_allocate(self, num_tokens: int) -> int:
        return blocks_needed(self.num_tokens + num_tokens, self.pool.block_size) - len(self.blocks)

    def append(self, num_tokens: int) -> list[BlockCopy]:
        if num_tokens < 0:
            raise ConfigurationError(f"cannot append {num_tokens} tokens.")
        self.blocks += self.pool.allocate_many(self.blocks_to_allocate(num_tokens))  # may raise: nothing has changed
        self.num_tokens += num_tokens
        return []

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        if not 0 <= start <= stop <= self.num_tokens:
            raise ConfigurationError(f"tokens {start} to {stop} wanted, but only {self.num_tokens} have slots.")
        size = self.pool.block_size
        return [self.blocks[i // size] * size + i % size for i in range(start, stop)]

    def free(self) -> None:
        while self.blocks:
            self.pool.free(self.blocks.pop())
        self.num_tokens = 0
        self.block_hashes = []

    move_to = SharingBlockTable.move_to


NULL_BLOCK = -1


def first_seen(table: BlockTable, window: int) -> int:
    return max(0, table.num_tokens + 1 - window)


def slide(table: BlockTable, window: int) -> list[int]:
    home = []
    for i in range(first_seen(table, window) // table.pool.block_size):
        if table.blocks[i] != NULL_BLOCK:
            home.append(table.blocks[i])
            table.pool.free(table.blocks[i])
            table.blocks[i] = NULL_BLOCK
    return home


def visible_slots(table: BlockTable, window: int) -> list[int]:
    size = table.pool.block_size
    return [table.blocks[i // size] * size + i % size for i in range(first_seen(table, window), table.num_tokens)]
