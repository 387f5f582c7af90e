"""Block pools as they are in real life: the free queue out of order, some blocks in use, and somebody who listens."""

from random import Random

from minipage.memory import BlockPool


def scattered_pool(num_free, size, seed=0, num_taken=2):
    """A pool of which others hold some blocks, and the free ones lie in any order: the place of a block in a table is
    not its number. Block 0, which counts as False, is free, and early in the queue. `pool.told` lists what `on_evict`
    was called with."""
    pool = BlockPool(num_free + num_taken, size)
    _, *others = pool.allocate_many(pool.num_blocks)
    Random(seed).shuffle(others)
    free = others[num_taken:]
    if num_free:
        free.insert(seed % 3, 0)
    for block in free:
        pool.free(block)
    pool.told = []
    pool.on_evict = pool.told.append
    return pool


def counts_of(pool):
    return [pool.ref_count(block) for block in range(pool.num_blocks)]


def state_of(pool):
    return list(pool.free_queue), counts_of(pool)
