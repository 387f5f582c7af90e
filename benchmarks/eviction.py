"""Which order of eviction finds how much? `python -m benchmarks.eviction`

Three workloads, of which each order loses one, go one text after the other through a pool and its prefix cache; no
model is needed. The numbers are hit rates: tokens found, as a share of all tokens. They are the same on every machine.

    scans     eight assistants, each with instructions of its own, between many documents that come once
    fashions  what is asked for again and again is something else from time to time
    chats     conversations of eight turns, ten at a time; each turn sends all that was said before
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from functools import cache

from rich.table import Table

from benchmarks.measure import console, main
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.memory.eviction import EVICTIONS, Eviction

NUM_TEXTS = 300


def used(pool: BlockPool, prefixes: PrefixCache, token_ids: list[int]) -> int:
    """A text comes, is computed as far as it is not found, and goes; returns how many of its tokens were found."""
    block_table = BlockTable(pool)
    prefixes.adopt(block_table, *prefixes.find(token_ids))
    found = block_table.num_tokens
    block_table.append(len(token_ids) - found)
    prefixes.publish(block_table, token_ids)
    block_table.free()
    return found


def hit_rate(eviction: Eviction, texts: Iterable[list[int]], num_blocks: int) -> float:
    pool = BlockPool(num_blocks, 16, eviction)
    return share_found(pool, PrefixCache(pool), texts)


def share_found(pool: BlockPool, prefixes: PrefixCache, texts: Iterable[list[int]]) -> float:
    """Of all tokens of these texts, which come one after the other."""
    found, asked = 0, 0
    for token_ids in texts:
        found += used(pool, prefixes, token_ids)
        asked += len(token_ids)
    pool.check_integrity([])
    return found / asked


@cache
def text(name: str, length: int) -> list[int]:
    rng = random.Random(name)
    return [rng.randrange(50_000) for _ in range(length)]


def scans() -> Iterator[list[int]]:
    rng = random.Random(0)
    for i in range(NUM_TEXTS):
        if rng.random() < 0.3:
            yield text(f"instructions {rng.randrange(8)}", 256) + text(f"question {i}", 24)
        else:
            yield text(f"document {i}", 640)


def fashions() -> Iterator[list[int]]:
    rng = random.Random(1)
    for i in range(NUM_TEXTS):
        yield text(f"fashion {i // 50} {rng.randrange(12)}", 256) + text(f"question {i}", 24)


def chats() -> Iterator[list[int]]:
    rng = random.Random(2)
    turns = dict.fromkeys(range(10), 0)
    for i in range(NUM_TEXTS):
        name = rng.choice(sorted(turns))
        turns[name] += 1
        yield text(f"chat {name}", 64 * turns[name] + 7)
        if turns[name] == 8:
            del turns[name]
            turns[10 + i] = 0


WORKLOADS = {"scans": (scans, 200), "fashions": (fashions, 200), "chats": (chats, 260)}  # and blocks in the pool


def table() -> dict[str, dict[str, float]]:
    """{workload: {order: hit rate}}"""
    return {
        name: {order: hit_rate(eviction, texts(), num_blocks) for order, eviction in EVICTIONS.items()}
        for name, (texts, num_blocks) in WORKLOADS.items()
    }


def run(quick: bool) -> dict[str, dict[str, float]]:
    shown, found = Table("workload", *EVICTIONS, title="prompt tokens found in the prefix cache"), table()
    for name, rates in found.items():
        shown.add_row(name, *(f"{rate:.1%}" for rate in rates.values()))
    console.print(shown)
    return found


if __name__ == "__main__":
    sys.exit(main("eviction", "Which order of eviction finds how much.", run))
