"""A tier below the pool: evicted blocks that can be found go there, and come back when their text does.

    pool     [ 7: "To be or" ]  is evicted ─▶ save under its hash      a text is looked for
    tier     [ slot 0: .... ] [ slot 1: "To be or" ] [ slot 2: .... ]  ─▶ load into a free block of the pool

It is the heir of swapping. There a preempted group waits in a second memory, for itself; here every block that is
evicted is kept by its hash, for whoever begins alike. The tier is larger than the pool, slower, and exact: what comes
back are the same bits. It forgets what was not wanted for the longest time.

`find` is the whole trick. It looks in both memories, as if they were one: a number below 0 stands for a slot of the
tier. What it finds there is loaded into a free block and known from then on, like one that was just computed, and then
found once more. So nobody else, from the scheduler to the kernels, knows that there is a tier.

`store` is the tier's memory: an array, or a file (worker/offload.py; of a GPU, worker/gpu/offload.py):

    names                           of each slot, the hash of the block that it holds, or b""; an older process may have
                                    saved it. A slot has room for K and V of one block, in all layers
    save(slot, hash, block)         copies a block of the pool; False: it could not, and the slot holds what it held
    load(slot, hash, block)         copies it back; False: this is not what was saved under this hash, bit for bit
    clear()                         nothing that was saved may be loaded any more, by another engine neither
    is_coming(block)                whether what was loaded is still on its way
    before_writing()                a step is about to write to the pool
"""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Sequence
from copy import copy
from typing import Any

from minipage.memory.block_table import BlockTable, blocks_needed
from minipage.memory.prefix_cache import Prefix, PrefixCache


class Tier:
    """Which slot of `store` holds which block, by hash. What nobody wanted for longest is overwritten first."""

    def __init__(self, store: Any) -> None:
        self.store = store
        # hash: ~slot, which is below 0, so that it is taken for no block of the pool; least recently wanted first
        self.place_of = OrderedDict((name, ~slot) for slot, name in enumerate(store.names) if name)
        self.unused = [*{~slot for slot in range(len(store.names))}.difference(self.place_of.values())]

    def save(self, block_hash: bytes, block: int) -> None:
        """Keep a block of the pool, which is evicted there."""
        if not self.touch(block_hash) and self.store.names:  # what it holds already, it need not copy
            if not self.unused:
                self.unused.append(self.place_of.popitem(last=False)[1])
            if self.store.save(~self.unused[-1], block_hash, block):
                self.store.names[~self.unused[-1]] = block_hash
                self.place_of[block_hash] = self.unused.pop()

    def load(self, block_hash: bytes, block: int) -> bool:
        """Whether the block has its K and V now; a slot that is damaged is given up."""
        if self.touch(block_hash) and not self.store.load(~self.place_of[block_hash], block_hash, block):
            self.forget(block_hash)
        return block_hash in self.place_of

    def touch(self, block_hash: bytes) -> bool:
        """Whether it is there, to be overwritten last."""
        if is_there := block_hash in self.place_of:
            self.place_of.move_to_end(block_hash)
        return is_there

    def forget(self, block_hash: bytes) -> None:
        if block_hash in self.place_of:
            self.unused.append(self.place_of.pop(block_hash))


class Offloaded(PrefixCache):
    """Made one with a prefix cache of any kind, which has a tier from then on; see `offload`."""

    tier: Tier
    came_back: dict[int, bytes]  # hashes of blocks that were loaded, until somebody counts them

    def find(self, token_ids: Sequence[int], salt: str = "") -> Prefix:
        both: Any = copy(self)  # the same cache, which also knows what is in the tier
        both._block_of = ChainMap(self._block_of, self.tier.place_of)
        found: Prefix = super(Offloaded, both).find(token_ids, salt)  # the search of a cache that has no tier
        if min(found.blocks, default=0) >= 0:  # all is in the pool
            return found
        if self._has_room(found.blocks, len(token_ids)):
            self._bring_back(found.blocks)
        return super().find(token_ids, salt)

    def evict(self, block: int) -> None:
        """The pool calls this when it hands a block out."""
        if block_hash := self._hash_of.get(block):
            self.tier.save(block_hash, block)
        self.came_back.pop(block, None)
        super().forget(block)

    def forget(self, block: int) -> None:
        """What it holds is no good: nobody should find it again, here or below."""
        self.tier.forget(self._hash_of.get(block, b""))
        super().forget(block)

    def reset(self) -> None:
        super().reset()  # from now on other hashes are asked for
        self.tier.store.clear()

    def _has_room(self, found: list[int], num_tokens: int) -> bool:
        """Whether the text could start now. If not, it waits, and what is loaded might be evicted before it starts.

        Nor is anything loaded while copies are to be made (partial_cache.py): it might overwrite what they read.
        """
        taken = sum(block < 0 or self.pool.ref_count(block) == 0 for block in found)
        others = blocks_needed(num_tokens - 1, self.pool.block_size) - len(found)
        return taken + max(0, others) <= self.pool.num_free and not getattr(self, "copies", ())

    def _bring_back(self, found: list[int]) -> None:
        """Load what was found in the tier into free blocks, and let it be known."""
        here, hashes = [b for b in found if b >= 0], [self.tier.store.names[~b] for b in found if b < 0]
        table = BlockTable(self.pool)
        PrefixCache.adopt(self, table, here, [])  # so that these are not evicted meanwhile
        for block_hash in hashes:
            self.tier.touch(block_hash)
        table.blocks += self.pool.allocate_many(len(hashes))  # which may evict others into the tier, over these last
        for block_hash, block in zip(hashes, table.blocks[len(here) :]):
            if self.tier.load(block_hash, block):
                self._hash_of[block] = self.came_back[block] = block_hash
                self._block_of[block_hash] = block
        table.free()  # to the end of the free queue, where they are found


def offload(cache: Any, store: Any) -> None:
    """Give a prefix cache a tier in `store`. It becomes a subclass of what it was, of whichever kind it is."""
    cache.tier, cache.came_back = Tier(store), {}
    cache.__class__ = type(f"Offloaded{type(cache).__name__}", (Offloaded, type(cache)), {})
    cache.pool.on_evict = cache.evict
