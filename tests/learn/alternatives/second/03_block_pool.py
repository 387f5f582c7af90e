"""Lesson 3 in a third style: a dataclass, a base class in the same file, and arrays of NumPy inside."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minipage.errors import BlockError, ConfigurationError, IntegrityError, OutOfBlocksError


class Counted:
    """Reference counts in an array."""

    def ref_count(self, block):
        if not 0 <= block < self.num_blocks:
            raise BlockError(f"there is no block {block}")
        return int(self.counts[block])

    def change(self, block, difference, *, in_use):
        if (self.ref_count(block) > 0) is not in_use:
            raise BlockError(f"block {block} is {'free' if in_use else 'in use'}")
        self.counts[block] += difference


def ignore(block):
    pass


@dataclass
class BlockPool(Counted):
    num_blocks: int
    block_size: int = 16
    on_evict: Callable[[int], None] = field(default=ignore)

    def __post_init__(self):
        self.counts = np.zeros(self.num_blocks, np.int32)
        self.queue = np.arange(self.num_blocks)

    @property
    def free_queue(self):
        return tuple(self.queue.tolist())

    @property
    def num_free(self):
        return int(self.queue.size)

    @property
    def num_used(self):
        return self.num_blocks - self.num_free

    def allocate(self):
        return self.allocate_many(1).pop()

    def allocate_many(self, count):
        if count < 0:
            raise ConfigurationError("a negative number of blocks")
        if count > self.queue.size:
            raise OutOfBlocksError("too few blocks are free")
        blocks, self.queue = self.queue[:count].tolist(), self.queue[count:]
        self.counts[blocks] = 1
        for block in blocks:
            self.on_evict(block)
        return blocks

    def free(self, block):
        self.change(block, -1, in_use=True)
        if self.counts[block] == 0:
            self.queue = np.append(self.queue, block)

    def share(self, block):
        self.change(block, +1, in_use=True)

    def revive(self, block):
        self.change(block, +1, in_use=False)
        self.queue = self.queue[self.queue != block]

    def check_integrity(self, block_tables):
        held = np.bincount([b for table in block_tables for b in table], minlength=self.num_blocks)
        if (held != self.counts).any() or sorted(self.queue) != np.flatnonzero(held == 0).tolist():
            raise IntegrityError("counts, queue and tables disagree")

    __hash__ = object.__hash__
    __eq__ = object.__eq__
