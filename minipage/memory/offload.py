"""A tier below the pool: evicted blocks that can be found go there, and come back when their text does.

    pool     [ 7: "To be or" ]  is evicted ─▶ save under its hash      a text is looked for
    tier     [ slot 0: .... ] [ slot 1: "To be or" ] [ slot 2: .... ]  ─▶ load into a free block of the pool, publish

It is the heir of swapping. There a preempted group waits in a second memory, for itself; here every block that is
evicted is kept by its hash, for whoever begins alike. The tier is larger than the pool, slower, and exact: what comes
back are the same bits. It forgets what was not wanted for the longest time.

`find` is the whole trick. It looks in both memories, as if they were one: a number below 0 stands for a slot of the
tier. What it finds there is loaded and published like a block that was just computed, and then found once more. So
nobody else, from the scheduler to the kernels, knows that there is a tier.

`store` is the tier's memory, an array or a file (worker/offload.py):

    num_slots                       each has room for K and V of one block, in all layers
    save(slot, hash, block)         copies a block of the pool; False: it could not, and the slot holds nothing
    load(slot, hash, block)         copies it back; False: this is not what was saved under this hash, bit for bit
    clear()                         nothing that was saved may be loaded any more, by another engine neither
"""

from __future__ import annotations

from collections import ChainMap, OrderedDict
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from minipage.memory.block_table import BlockTable, blocks_needed
from minipage.memory.kv_groups import GroupTables
from minipage.memory.prefix_cache import Prefix, PrefixCache


class Tier:
    """Which slot holds which block, by hash. What was not used for the longest time is overwritten first.

    Args:
        held: {slot: hash} of what the store holds already.
    """

    def __init__(self, store: Any, held: Mapping[int, bytes]) -> None:
        self.store = store
        # hash -> ~slot: below 0, so that it is taken for no block of the pool; least recently used first
        self.place_of = OrderedDict((block_hash, ~slot) for slot, block_hash in held.items())
        self.hash_in = {~place: block_hash for block_hash, place in self.place_of.items()}  # slot -> hash
        self.unused = sorted(set(range(store.num_slots)) - self.hash_in.keys(), reverse=True)

    def save(self, block_hash: bytes, block: int) -> None:
        if self.touch(block_hash) or not (self.unused or self.place_of):  # what it holds already, it need not copy
            return
        slot = self.unused.pop() if self.unused else ~self.place_of.popitem(last=False)[1]
        if self.store.save(slot, block_hash, block):
            self.hash_in[slot] = block_hash
            self.place_of[block_hash] = ~slot
        else:
            self.unused.append(slot)

    def load(self, block_hash: bytes, block: int) -> bool:
        """Whether the block has its K and V now; a slot that is damaged is given up."""
        if not self.touch(block_hash):
            return False
        if not self.store.load(~self.place_of[block_hash], block_hash, block):
            self.unused.append(~self.place_of.pop(block_hash))
            return False
        return True

    def touch(self, block_hash: bytes) -> bool:
        """Whether it is there, to be overwritten last."""
        if is_there := block_hash in self.place_of:
            self.place_of.move_to_end(block_hash)
        return is_there


class Offloaded(PrefixCache):
    """Made one with a prefix cache of any kind, which has a tier from then on; see `offload`."""

    kind: type[PrefixCache]  # what it was before
    tier: Tier
    came_back: set[int]  # blocks that were loaded, until somebody counts them

    def find(self, token_ids: Sequence[int], salt: str = "") -> Prefix:
        found: Prefix = self._both_memories().find(token_ids, salt)
        if min(found.blocks, default=0) >= 0:  # all is in the pool
            return found
        if self._has_room(found, token_ids):
            self._bring_back(found, token_ids, salt)
        return super().find(token_ids, salt)

    def forget(self, block: int) -> None:
        if block in self._hash_of:
            self.tier.save(self._hash_of[block], block)
        self.came_back.discard(block)
        super().forget(block)

    def reset(self) -> None:
        super().reset()
        self.tier.store.clear()
        self.tier = Tier(self.tier.store, {})

    def _both_memories(self) -> Any:
        """A prefix cache like this one, which also knows what is in the tier, and holds that by doing nothing."""
        both: Any = copy(self)
        both.__class__ = self.kind
        both._block_of = ChainMap(self._block_of, self.tier.place_of)
        both._hold = lambda block: None if block < 0 else self._hold(block)
        return both

    def _has_room(self, found: Prefix, token_ids: Sequence[int]) -> bool:
        """Whether the text could start now. If not, it waits, and what is loaded might be evicted before it starts.

        Blocks that are still to be copied are not overwritten either (partial_cache.py).
        """
        taken = sum(block < 0 or self.pool.ref_count(block) == 0 for block in found.blocks)
        others = blocks_needed(len(token_ids) - 1, self.pool.block_size) - len(found.blocks)
        return taken + max(0, others) <= self.pool.num_free and not getattr(self, "copies", ())

    def _bring_back(self, found: Prefix, token_ids: Sequence[int], salt: str) -> None:
        """Load what was found in the tier into free blocks, and publish them."""
        windows = getattr(self, "windows", None)
        table = (type("GroupTables", (GroupTables,), {"windows": windows}) if windows else BlockTable)(self.pool)
        block_hashes = found.block_hashes if windows else found.block_hashes[: 1 + len(found.blocks)]  # of whole blocks
        self._both_memories().adopt(table, found.blocks, block_hashes)
        hash_at = {place: self.tier.hash_in[~place] for place in found.blocks if place < 0}
        for block_hash in hash_at.values():
            self.tier.touch(block_hash)
        blocks = dict(zip(hash_at, self.pool.allocate_many(len(hash_at))))  # which may evict others, into the tier
        num_good = len(block_hashes) - 1
        for part in getattr(table, "parts", [table]):
            for i, place in enumerate(part.blocks):
                part.blocks[i] = blocks.get(place, place)
                if place < 0 and not self.tier.load(hash_at[place], blocks[place]):
                    num_good = min(num_good, getattr(part, "num_behind", 0) + i)
        table.num_tokens = num_good * self.pool.block_size
        del table.block_hashes[1:]
        self.publish(table, token_ids, salt)
        self.came_back.update(block for block in blocks.values() if block in self)
        table.free()  # to the end of the free queue, where they are found


def offload(cache: PrefixCache, store: Any, held: Mapping[int, bytes]) -> None:
    """Give a prefix cache a tier in `store`, which holds {slot: hash} already."""
    given: Any = cache
    given.tier, given.came_back, given.kind = Tier(store, held), set(), type(cache)
    # NOTE: it becomes a subclass of what it was, of whichever kind it is.
    given.__class__ = type(f"Offloaded{type(cache).__name__}", (Offloaded, type(cache)), {})
    cache.pool.on_evict = cache.forget
