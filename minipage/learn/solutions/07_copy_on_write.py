"""Lesson 7, solved: fork and copy-on-write, laid over a block table that knows nothing of them."""

from __future__ import annotations

from minipage.errors import OutOfBlocksError
from minipage.memory import BlockCopy


class CopyOnWrite:
    def fork(self):
        twin = type(self)(self.pool)
        twin.blocks = self.blocks.copy()
        twin.num_tokens = self.num_tokens
        twin.block_hashes = self.block_hashes.copy()
        for block in self.blocks:
            self.pool.share(block)
        return twin

    def shared_tail(self) -> int | None:
        next_block = self.num_tokens // self.pool.block_size
        if next_block < len(self.blocks) and self.pool.ref_count(self.blocks[next_block]) > 1:
            return self.blocks[next_block]
        return None

    def blocks_to_allocate(self, num_tokens: int) -> int:
        if num_tokens == 0:
            return 0
        return super().blocks_to_allocate(num_tokens) + (self.shared_tail() is not None)

    def append(self, num_tokens: int) -> list[BlockCopy]:
        if self.blocks_to_allocate(num_tokens) > self.pool.num_free:
            raise OutOfBlocksError(f"{num_tokens} more tokens do not fit: {self.pool.num_free} blocks are free.")
        shared = self.shared_tail()
        if num_tokens <= 0 or shared is None:
            return super().append(num_tokens)
        copy = self.pool.allocate()
        self.pool.free(shared)  # this reference only: the other tables keep theirs
        self.blocks[-1] = copy
        return [BlockCopy(shared, copy), *super().append(num_tokens)]
