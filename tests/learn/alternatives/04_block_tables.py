"""Lesson 4 in another style: token by token, with loops, and a table that is emptied by slices."""

from minipage.errors import ConfigurationError, OutOfBlocksError


def blocks_needed(num_tokens, block_size):
    full, rest = divmod(num_tokens, block_size)
    return full + bool(rest)


class BlockTable:
    def __init__(self, pool):
        self.pool, self.blocks, self.num_tokens, self.block_hashes = pool, [], 0, []

    def __len__(self):
        return len(self.blocks)

    def __iter__(self):
        yield from self.blocks

    def blocks_to_allocate(self, num_tokens):
        return blocks_needed(self.num_tokens + num_tokens, self.pool.block_size) - len(self.blocks)

    def append(self, num_tokens):
        if num_tokens < 0:
            raise ConfigurationError("tokens cannot be taken away")
        if self.blocks_to_allocate(num_tokens) > self.pool.num_free:
            raise OutOfBlocksError("too few blocks")
        for _ in range(num_tokens):
            if self.num_tokens == len(self.blocks) * self.pool.block_size:
                self.blocks.append(self.pool.allocate())
            self.num_tokens += 1
        return []

    def slot_mapping(self, start, stop):
        if start < 0 or stop > self.num_tokens or start > stop:
            raise ConfigurationError("these tokens have no slots")
        size = self.pool.block_size
        slots = [block * size + offset for block in self.blocks for offset in range(size)]
        return slots[start:stop]

    def free(self):
        for block in self.blocks[::-1]:
            self.pool.free(block)
        self.blocks, self.num_tokens, self.block_hashes = [], 0, []

    def move_to(self, pool, moved):
        old_pool, old_blocks = self.pool, self.blocks
        self.pool, self.block_hashes = pool, self.block_hashes[:1]
        for block in old_blocks:
            if block in moved:
                pool.share(moved[block])
        self.blocks = [moved[b] if b in moved else moved.setdefault(b, pool.allocate()) for b in old_blocks]
        for block in old_blocks[::-1]:
            old_pool.free(block)


def slide(table, window):
    size, home = table.pool.block_size, []
    for i, block in enumerate(table.blocks):
        last = i * size + size - 1
        if last > table.num_tokens - window:
            break
        if block >= 0:
            table.pool.free(block)
            table.blocks[i] = -1
            home.append(block)
    return home


def visible_slots(table, window):
    size = table.pool.block_size
    slots = [block * size + i for block in table.blocks for i in range(size)]
    seen = [slot for place, slot in enumerate(slots) if table.num_tokens - window < place]
    return seen[: len(seen) - (len(slots) - table.num_tokens)]
