"""Lesson 7 in another style: the tail is made private first, and lesson 4 does the rest."""

from copy import copy

from minipage.errors import OutOfBlocksError
from minipage.memory import BlockCopy


class CopyOnWrite:
    def fork(self):
        twin = copy(self)
        twin.blocks, twin.block_hashes = self.blocks[:], self.block_hashes[:]
        [self.pool.share(block) for block in twin]
        return twin

    def shared_tail(self):
        is_part_full = self.num_tokens % self.pool.block_size != 0
        if is_part_full and self.pool.ref_count(self.blocks[-1]) != 1:
            return self.blocks[-1]

    def blocks_to_allocate(self, num_tokens):
        copies = 1 if num_tokens and self.shared_tail() is not None else 0
        return copies + super().blocks_to_allocate(num_tokens)

    def append(self, num_tokens):
        if self.blocks_to_allocate(num_tokens) > self.pool.num_free:
            raise OutOfBlocksError("too few blocks")
        orders = self.make_private() if num_tokens else []
        super().append(num_tokens)
        return orders

    def make_private(self):
        tail = self.shared_tail()
        if tail is None:
            return []
        *rest, _ = self.blocks
        self.blocks = [*rest, self.pool.allocate()]
        self.pool.free(tail)
        return [BlockCopy(source=tail, destination=self.blocks[-1])]
