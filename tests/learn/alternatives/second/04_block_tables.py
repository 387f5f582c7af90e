"""Lesson 4 in a third style: recursion, `blocks_to_allocate` as it is given, and NumPy for the slots."""

import math

import numpy as np

from minipage.errors import ConfigurationError, OutOfBlocksError


def blocks_needed(num_tokens, block_size):
    return np.int64(math.ceil(num_tokens / block_size))


class BlockTable:
    def __init__(self, pool):
        self.pool = pool
        self.blocks = []
        self.num_tokens = 0
        self.block_hashes = []

    def __len__(self):
        return len(self.blocks)

    def __iter__(self):
        return iter(self.blocks)

    def blocks_to_allocate(self, num_tokens):
        return int(blocks_needed(self.num_tokens + num_tokens, self.pool.block_size)) - len(self.blocks)

    def append(self, num_tokens):
        if num_tokens < 0:
            raise ConfigurationError("fewer than none")
        if self.pool.num_free < self.blocks_to_allocate(num_tokens):
            raise OutOfBlocksError("the pool has too few")
        if num_tokens == 0:
            return []
        if self.num_tokens % self.pool.block_size == 0:
            self.blocks.append(self.pool.allocate())
        self.num_tokens += 1
        return self.append(num_tokens - 1)

    def slot_mapping(self, start, stop):
        if not 0 <= start <= stop <= self.num_tokens:
            raise ConfigurationError("no such tokens")
        index, offset = np.divmod(np.arange(start, stop), self.pool.block_size)
        return (np.array(self.blocks, int)[index] * self.pool.block_size + offset).tolist()

    def free(self):
        if self.blocks:
            self.pool.free(self.blocks.pop())
            return self.free()
        self.__init__(self.pool)
        return None

    def move_to(self, pool, moved):
        old_pool, old_blocks = self.pool, self.blocks
        self.pool, self.blocks, self.block_hashes = pool, [], self.block_hashes[:1]
        for block in old_blocks:
            if block in moved:
                pool.share(moved[block])
            else:
                moved[block] = pool.allocate()
            self.blocks.append(moved[block])
        for block in reversed(old_blocks):
            old_pool.free(block)


def seen(table, window):
    return np.arange(table.num_tokens)[max(0, table.num_tokens - window + 1) :]


def slide(table, window):
    start = max(0, table.num_tokens - window + 1) // table.pool.block_size
    home = [block for block in table.blocks[:start] if block != -1]
    table.blocks[:start] = [-1] * start
    for block in home:
        table.pool.free(block)
    return home


def visible_slots(table, window):
    index, offset = np.divmod(seen(table, window), table.pool.block_size)
    return (np.array(table.blocks, int)[index] * table.pool.block_size + offset).tolist()
