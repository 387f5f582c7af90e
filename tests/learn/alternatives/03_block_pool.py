"""Lesson 3 in another style: one dictionary of counts for the blocks in use, and a list of those that are free."""

from collections.abc import Iterable

from minipage.errors import BlockError, ConfigurationError, IntegrityError, OutOfBlocksError


class BlockPool:
    def __init__(self, num_blocks: int, block_size: int = 16) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.on_evict = lambda block: None
        self.holders: dict[int, int] = {}
        self.unused = [*range(num_blocks)]

    free_queue = property(lambda self: tuple(self.unused))
    num_free = property(lambda self: len(self.unused))
    num_used = property(lambda self: len(self.holders))

    def ref_count(self, block):
        if block not in range(self.num_blocks):
            raise BlockError(f"no block {block}")
        return self.holders.get(block, 0)

    def allocate(self):
        if not self.unused:
            raise OutOfBlocksError("none is free")
        block = self.unused.pop(0)
        self.holders[block] = 1
        self.on_evict(block)
        return block

    def allocate_many(self, count):
        if count < 0:
            raise ConfigurationError("fewer than none")
        if len(self.unused) < count:
            raise OutOfBlocksError("too few are free")
        return [self.allocate() for _ in range(count)]

    def free(self, block):
        if not self.ref_count(block):
            raise BlockError("it is free")
        left = self.holders.pop(block) - 1
        if left:
            self.holders[block] = left
        else:
            self.unused.append(block)

    def share(self, block):
        try:
            self.holders[block] += 1
        except KeyError:
            raise BlockError("it is free") from None

    def revive(self, block):
        try:
            self.unused.remove(block)
        except ValueError:
            raise BlockError("it is in use") from None
        self.holders[block] = 1

    def check_integrity(self, block_tables: Iterable[Iterable[int]]) -> None:
        names = [block for table in block_tables for block in table]
        for block in range(self.num_blocks):
            if names.count(block) != self.ref_count(block) or (block in self.unused) == (block in names):
                raise IntegrityError(f"block {block} is out of order")
