"""Gives an engine of the tests a tier, and tells the slot oracle what travels to it and back."""

import os

from minipage.engine.offload import GIB, Offloading
from minipage.model.stored_weights import DummyWeights
from minipage.worker.offload import LABEL

HAS_FILES = os.environ.get("MINIPAGE_TEST_CUDA") != "device"  # tiers of a GPU are in memory


def give_tier(llm, num_slots, path=None, is_pinned=not HAS_FILES):
    """A tier of `num_slots` blocks below the pool of `llm`, in memory or in a file."""
    block = llm.kv_cache.nbytes // llm.block_pool.num_blocks
    num_bytes = num_slots * block if is_pinned else (1 + num_slots) * (LABEL + block)  # here the first row is a header
    origin = llm.config, DummyWeights(llm.config), {}
    llm.offloading = Offloading(llm, (num_bytes + 1) / GIB, path, origin)
    assert len(llm.offloading.store.names) == num_slots
    if hasattr(llm, "oracle"):
        watch(llm)
    return llm.offloading


def watch(llm):
    """What the slots of the pool hold travels with the blocks."""
    store, size, prefixes = llm.offloading.store, llm.block_pool.block_size, llm.oracle.prefixes
    save, load, kept = store.save, store.load, {}

    def slots(block):
        return range(block * size, (block + 1) * size)

    def watched_save(slot, block_hash, block):
        kept[slot] = [prefixes.get(each) for each in slots(block)]
        assert None not in kept[slot], f"block {block} is saved, but what it holds cannot be trusted"
        return save(slot, block_hash, block)

    def watched_load(slot, block_hash, block):
        is_good = load(slot, block_hash, block)
        assert llm.block_pool.ref_count(block) == 1, f"block {block} is loaded, but somebody has it"
        for each, prefix in zip(slots(block), kept.get(slot) or [None] * size, strict=True):
            prefixes.pop(each, None)
            if is_good:
                prefixes[each] = prefix
        return is_good

    store.save, store.load = watched_save, watched_load
