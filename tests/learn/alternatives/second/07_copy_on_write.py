"""Lesson 7 in a third style: lesson 4's append first and the copy second, a class to inherit from, and properties."""

from minipage.errors import OutOfBlocksError
from minipage.memory import BlockCopy


class Tail:
    """What there is to know of the last block."""

    @property
    def room_in_tail(self):
        return len(self.blocks) * self.pool.block_size - self.num_tokens

    @property
    def tail_is_shared(self):
        return self.room_in_tail > 0 and self.pool.ref_count(self.blocks[-1]) >= 2


class CopyOnWrite(Tail):
    def fork(self):
        child = type(self)(self.pool)
        child.num_tokens, child.block_hashes = self.num_tokens, [*self.block_hashes]
        for block in self:
            self.pool.share(block)
            child.blocks.append(block)
        return child

    def shared_tail(self):
        return self.blocks[-1] if self.tail_is_shared else None

    def blocks_to_allocate(self, num_tokens):
        return num_tokens and super().blocks_to_allocate(num_tokens) + self.tail_is_shared

    def append(self, num_tokens):
        if num_tokens > 0 and self.blocks_to_allocate(num_tokens) > self.pool.num_free:
            raise OutOfBlocksError("not enough for all of it")
        tail, place = self.shared_tail(), len(self.blocks) - 1
        super().append(num_tokens)
        if tail is None or num_tokens == 0:
            return []
        [self.blocks[place]] = self.pool.allocate_many(1)
        self.pool.free(tail)
        return [BlockCopy(tail, self.blocks[place])]
