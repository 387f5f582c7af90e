"""What the graders of lesson 8 share: a cache over a pool, and a text in it."""

from minipage.learn.graders.pools import scattered_pool
from minipage.memory import BlockPool, BlockTable


def make(impl, size, num_blocks=20, forgets=False, scattered=False):
    """A cache and its pool; before exercise 8.5 the pool does not tell it when blocks are handed out."""
    pool = scattered_pool(num_blocks - 2, size) if scattered else BlockPool(num_blocks, size)
    cache = impl.PrefixCache(pool)
    if not forgets:
        pool.on_evict = lambda block: None
    return pool, cache


def watching(impl):
    impl.diary.begin()
    return impl.diary.watching(BlockPool, BlockTable, impl.PrefixCache)


def computed(cache, tokens, salt=""):
    table = BlockTable(cache.pool)
    table.append(len(tokens))
    cache.publish(table, tokens, salt)
    return table
