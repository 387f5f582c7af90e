"""Which free block is evicted next: `eviction=`, like `policy=`.

A free block keeps its contents until it is handed out, so the order of the free queue decides what the prefix cache can
still find. A queue is a mapping whose keys are the free blocks, in that order; three things happen to it:

    queue[block] = None    the block was freed
    queue.pop(block)       it was found again, and is in use
    del queue[block]       it is handed out: its contents are evicted

The pool calls `eviction(pool)` for its queue. Write your own: `LLM(eviction=...)` takes any such class or function.

    lru             what was not wanted for the longest time goes first (an OrderedDict; what minipage ships with)
    tails-first     the same, but what nobody can find goes before all others (vLLM since #42656)
    lfu             what was found least often goes first
    scan-resistant  what was never found again goes first, so that many texts that come once cannot displace those that
                    come again (segmented LRU: Karedla et al., "Caching strategies to improve disk system performance",
                    1994; its two segments are 2Q's idea, too)
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from minipage.errors import ConfigurationError, shown

if TYPE_CHECKING:
    from minipage.memory.block_pool import BlockPool

FreeQueue: TypeAlias = MutableMapping[int, None]
Eviction: TypeAlias = "Callable[[BlockPool], FreeQueue]"


def make_queue(eviction: Eviction, pool: BlockPool) -> FreeQueue:
    """Raises ConfigurationError if it is no queue: what has keys is a mapping, as for Python itself."""
    if not hasattr(queue := eviction(pool), "keys"):
        raise ConfigurationError(f"eviction has made {shown(queue)}; it must make a mapping, with the blocks as keys.")
    return queue


def lru(pool: BlockPool) -> FreeQueue:
    return OrderedDict()


class TailsFirst(OrderedDict[int, None]):
    def __init__(self, pool: BlockPool) -> None:
        super().__init__()
        self.pool = pool

    def __setitem__(self, block: int, value: None) -> None:
        super().__setitem__(block, value)
        if not self.pool.is_known(block):
            self.move_to_end(block, last=False)


class Levels(MutableMapping[int, None]):
    """Several queues: the lowest level is evicted first, and of a level what was freed longest ago."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.num_found: Counter[int] = Counter()  # how often each block was found again since it was written
        self.level_of: dict[int, int] = {}  # of the free blocks
        self.levels: dict[int, OrderedDict[int, None]] = {}

    def choose_level(self, block: int) -> int:
        return self.num_found[block]

    def __setitem__(self, block: int, value: None) -> None:
        level = self.level_of[block] = self.choose_level(block)
        self.levels.setdefault(level, OrderedDict())[block] = value

    def __delitem__(self, block: int) -> None:
        del self.levels[self.level_of.pop(block)][block]
        del self.num_found[block]  # of a Counter: also if it has none

    def pop(self, block: int) -> None:  # type: ignore[override]
        num_found = self.num_found[block]
        del self[block]
        self.num_found[block] = num_found + 1

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.levels[level] for level in sorted(self.levels))

    def __getitem__(self, block: int) -> None:
        return self.levels[self.level_of[block]][block]

    def __len__(self) -> int:
        return len(self.level_of)


class LFU(Levels):
    """One level for each number of times that a block was found again."""


class ScanResistant(Levels):
    """Two levels: never found again, and found. The upper one has at most half of the pool."""

    def choose_level(self, block: int) -> int:
        return min(self.num_found[block], 1)

    def __setitem__(self, block: int, value: None) -> None:
        super().__setitem__(block, value)
        upper = self.levels.get(1, OrderedDict())
        if len(upper) > self.pool.num_blocks // 2:
            oldest = next(iter(upper))
            del self[oldest]
            super().__setitem__(oldest, value)


EVICTIONS: dict[str, Eviction] = {"lru": lru, "tails-first": TailsFirst, "lfu": LFU, "scan-resistant": ScanResistant}
