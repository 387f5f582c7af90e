"""What do whole blocks miss? `python -m benchmarks.partial_hits`

Three workloads go one text after the other through a pool with room for all and its prefix cache, with blocks of 16 to
256 tokens; no model is needed. The numbers are hit rates: tokens found, as a share of all tokens. They are the same on
every machine.

    chats     conversations of eight turns, ten at a time; each turn sends all that was said, and 20 to 120 tokens
    one word  each of 20 documents of 1,000 tokens comes ten times, and each time another word in it is another one
    prompts   one system prompt of 240 tokens before questions of 20 to 60: what vLLM's users met in #54607
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator

from rich.table import Table

from benchmarks.eviction import share_found, text
from benchmarks.measure import console, main
from minipage.memory import BlockPool, PrefixCache
from minipage.memory.partial_cache import PartialPrefixCache

BLOCK_SIZES = 16, 32, 64, 128, 256
UNITS = None, 16, 1  # prefix_match_unit; None: whole blocks
NUM_SLOTS = 2**18


def chats() -> Iterator[list[int]]:
    rng = random.Random(0)
    lengths = {i: [0] for i in range(10)}
    for i in range(400):
        name = rng.choice(sorted(lengths))
        turns = lengths[name]
        turns.append(turns[-1] + rng.randrange(20, 121))
        yield text(f"chat {name}", 1000)[: turns[-1]]
        if len(turns) == 9:
            del lengths[name]
            lengths[10 + i] = [0]


def one_word() -> Iterator[list[int]]:
    rng = random.Random(1)
    for i in range(200):
        words = text(f"document {i % 20}", 1000).copy()
        if i >= 20:
            words[rng.randrange(1000)] = 50_000 + i
        yield words


def prompts() -> Iterator[list[int]]:
    rng = random.Random(2)
    for i in range(200):
        yield text("system prompt", 240) + text(f"question {i}", rng.randrange(20, 61))


WORKLOADS: dict[str, Callable[[], Iterator[list[int]]]] = {"chats": chats, "one word": one_word, "prompts": prompts}


def hit_rate(texts: Iterable[list[int]], block_size: int, unit: int | None = None) -> float:
    pool = BlockPool(NUM_SLOTS // block_size, block_size)
    return share_found(pool, PrefixCache(pool) if unit is None else PartialPrefixCache(pool, unit), texts)


def table(name: str) -> dict[int | None, list[float]]:
    """{unit: hit rate for each block size}"""
    return {unit: [hit_rate(WORKLOADS[name](), size, unit) for size in BLOCK_SIZES] for unit in UNITS}


def run(quick: bool) -> dict[str, dict[int | None, list[float]]]:
    shown = Table("workload", "found in", *(f"blocks of {size}" for size in BLOCK_SIZES), title="prompt tokens found")
    found = {name: table(name) for name in WORKLOADS}
    for name, each in found.items():
        for unit, rates in each.items():
            what = "whole blocks" if unit is None else f"units of {unit}"
            shown.add_row(name if unit is None else "", what, *(f"{rate:.1%}" for rate in rates))
    console.print(shown)
    return found


if __name__ == "__main__":
    sys.exit(main("partial_hits", "What whole blocks miss.", run))
