"""How many sequences fit into the KV memory, and what does managing it cost? `python -m benchmarks.memory`

The first table is `minipage.simulate` over block sizes: requests of ShareGPT's lengths at half size (the mix of
`benchmarks.engine`, for a context of 1,024 tokens) are served from one KV budget, paged and by each of the contiguous
allocators that paging replaced. It shows how many run at a time, and the share of the memory that is wasted: of what is
held for a request, what holds no token of it (for the contiguous ones also what is lost between the chunks). The goals
are less than 4 % waste in blocks of 16, and 4 times the sequences of reserving the maximum.

The second table asks whether an operation on the memory manager costs the same, however large the pool.
It should: a pool of a million blocks is only a longer free queue. The blocks of every pool here were freed in random
order, as after a long day of serving. Each round does these things to each pool, and the time is that for one unit:

    allocate, free    a block of a BlockPool that is half full
    append            a token to each of many block tables, of which one in 16 takes a new block
    fork              a table of 64 blocks; the unit is a block
    look up           a text of 64 blocks, in a PrefixCache that knows as many as the pool has; the unit is a block
    publish           a new text of 64 blocks in that cache; the unit is a block
    evict             allocate a block that the cache knows, so that it has to forget it
    buddy ...         a chunk of 1 to 32 slots of the allocator that paging replaced, for comparison: it is O(log n)
    dictionary        delete a random entry from a dictionary with one entry for each block, and put it back

The last column is the largest pool's time over the smallest pool's. The dictionary is the yardstick for it: in Python
nothing that touches random entries is flatter, because what does not fit into the processor's caches has to be fetched
from memory, which takes a fixed time for each entry.
"""

from __future__ import annotations

import random
import sys
from collections import ChainMap, deque
from typing import Any

from rich.progress import track

from benchmarks.charts import Chart
from benchmarks.measure import Stopwatch, console, grid, in_turn, main
from minipage.errors import OutOfBlocksError
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.simulate import MAX_MODEL_LEN, NUM_SLOTS, Request, contiguous, draw_requests, paged, simulate
from minipage.simulate.baselines import BuddyAllocator, reserve_max, reserve_oracle, reserve_pow2

POOL_SIZES = 1_024, 10_240, 102_400, 1_024_000  # blocks; multiples of TEXT_BLOCKS
BLOCK_SIZES = 1, 8, 16, 32, 64, 128, 256  # tokens
BLOCK_SIZE = 16
TEXT_BLOCKS = 64
COUNT = 256  # units in a round
LARGEST_CHUNK = 32  # slots


class Pool:
    """A pool that is half full."""

    def __init__(self, num_blocks: int) -> None:
        self.random = random.Random(num_blocks)
        self.pool = shuffled_pool(num_blocks, self.random)
        self.pool.allocate_many(num_blocks // 2)

    def round(self) -> dict[str, float]:
        allocate, free, append, fork = (Stopwatch() for _ in range(4))
        with allocate.running():
            blocks = [self.pool.allocate() for _ in range(COUNT)]
        self.random.shuffle(blocks)
        with free.running():
            for block in blocks:
                self.pool.free(block)
        tables = [BlockTable(self.pool) for _ in range(COUNT)]
        for i, table in enumerate(tables):
            table.append(1 + i % BLOCK_SIZE)
        with append.running():
            for table in tables:
                table.append(1)
        self.give_back(tables)
        parent = BlockTable(self.pool)
        parent.append(TEXT_BLOCKS * BLOCK_SIZE)
        with fork.running():
            twins = [parent.fork() for _ in range(COUNT // TEXT_BLOCKS)]
        self.give_back([parent, *twins])
        times = {"allocate": allocate, "free": free, "append": append, "fork": fork}
        return {name: watch.seconds / COUNT for name, watch in times.items()}

    def give_back(self, tables: list[BlockTable]) -> None:
        self.random.shuffle(tables)  # so that the free queue stays in random order
        for table in tables:
            table.free()


class Cache:
    """A pool whose every block is free, but still holds a part of some text that can be found.

    All texts have the same tokens, each under a salt of its own: for the cache these are different texts.
    """

    def __init__(self, num_blocks: int) -> None:
        self.random = random.Random(num_blocks)
        self.pool = shuffled_pool(num_blocks, self.random)
        self.cache = PrefixCache(self.pool)
        self.tokens = [self.random.randrange(50_000) for _ in range(TEXT_BLOCKS * BLOCK_SIZE + 1)]
        self.salts = deque(str(i) for i in range(num_blocks // TEXT_BLOCKS))  # the least recently used first
        for salt in self.salts:
            self.store(salt, Stopwatch(), Stopwatch())

    def round(self) -> dict[str, float]:
        look_up, evict, publish = Stopwatch(), Stopwatch(), Stopwatch()
        for _ in range(COUNT // TEXT_BLOCKS):
            salt = self.random.choice(self.salts)
            with look_up.running():
                blocks, _ = self.cache.find(self.tokens, salt)
            assert len(blocks) == TEXT_BLOCKS
            self.salts.popleft()
            self.salts.append(f"{self.random.random()}")
            self.store(self.salts[-1], evict, publish)
        times = {"look up": look_up, "publish": publish, "evict": evict}
        return {name: watch.seconds / COUNT for name, watch in times.items()}

    def store(self, salt: str, evict: Stopwatch, publish: Stopwatch) -> None:
        """Put a text in the place of the one that was not used for the longest time."""
        table = BlockTable(self.pool)
        with evict.running():
            table.append(TEXT_BLOCKS * BLOCK_SIZE)
        with publish.running():
            self.cache.publish(table, self.tokens, salt)
        table.free()


class Buddies:
    """As many slots as the pool has, filled with chunks of all sizes, of which every other was freed."""

    def __init__(self, num_blocks: int) -> None:
        self.random = random.Random(num_blocks)
        self.allocator = BuddyAllocator(num_blocks * BLOCK_SIZE)
        starts = []
        try:
            while True:
                starts.append(self.allocator.allocate(self.random.randint(1, LARGEST_CHUNK)))
        except OutOfBlocksError:
            self.random.shuffle(starts)
        for start in starts[::2]:
            self.allocator.free(start)

    def round(self) -> dict[str, float]:
        allocate, free = Stopwatch(), Stopwatch()
        sizes = [self.random.randint(1, LARGEST_CHUNK) for _ in range(COUNT // 4)]
        with allocate.running():
            starts = [self.allocator.allocate(size) for size in sizes]
        self.random.shuffle(starts)
        with free.running():
            for start in starts:
                self.allocator.free(start)
        return {"buddy allocate": allocate.seconds / len(sizes), "buddy free": free.seconds / len(sizes)}


class Dictionary:
    """What random access costs in Python, whatever is made of it."""

    def __init__(self, num_blocks: int) -> None:
        self.random = random.Random(num_blocks)
        self.entries = dict.fromkeys(range(num_blocks))

    def round(self) -> dict[str, float]:
        keys = self.random.sample(range(len(self.entries)), COUNT)
        watch = Stopwatch()
        with watch.running():
            for key in keys:
                del self.entries[key]
                self.entries[key] = None
        return {"dictionary": watch.seconds / COUNT}


def shuffled_pool(num_blocks: int, generator: random.Random) -> BlockPool:
    """A free pool whose queue is in random order."""
    pool = BlockPool(num_blocks, BLOCK_SIZE)
    blocks = pool.allocate_many(num_blocks)
    generator.shuffle(blocks)
    for block in blocks:
        pool.free(block)
    return pool


def fit(quick: bool) -> list[dict[str, Any]]:
    """How many sequences run at a time in the same memory, and the waste."""
    num_slots, max_model_len, shorter = NUM_SLOTS // 2, MAX_MODEL_LEN // 2, 2
    num_requests = 200 if quick else 1000
    ways = {
        "reserve the maximum": contiguous(reserve_max, num_slots, max_model_len),
        "reserve a power of two": contiguous(reserve_pow2, num_slots, max_model_len),
        "reserve what is needed (oracle)": contiguous(reserve_oracle, num_slots, max_model_len),
        **{f"paged, blocks of {size}": paged(num_slots, size) for size in BLOCK_SIZES},
    }
    rows = []
    for name, memory in track(
        ways.items(), "Simulating", console=console, transient=True, disable=not console.is_terminal
    ):
        requests = (shortened(request, shorter) for request in draw_requests(0))
        result = simulate(memory, requests, num_slots, num_requests)
        shares = result.shares
        # A free block is not wasted, anybody can have it; what lies between contiguous chunks is.
        of = 100 if name.startswith("reserve") else 100 - shares.external
        waste = 100 * (1 - shares.token_states / of)
        rows.append({"memory": name, "sequences": result.mean_batch, "waste": waste, **shares._asdict()})
    table = grid(
        f"{num_slots:,} KV slots, {num_requests:,} requests", ["", "sequences\nat a time", "waste", "times\nmaximum"]
    )
    for row in rows:
        times = row["sequences"] / rows[0]["sequences"]
        table.add_row(row["memory"], f"{row['sequences']:.1f}", f"{row['waste']:.1f} %", f"{times:.2f}")
    console.print(table)
    return rows


def shortened(request: Request, shorter: int) -> Request:
    return Request(*(max(1, length // shorter) for length in request))


def run(quick: bool) -> dict[str, list[dict[str, Any]]]:
    return {"fit": fit(quick), "costs": costs(quick)}


def costs(quick: bool) -> list[dict[str, Any]]:
    sizes = POOL_SIZES[:3] if quick else POOL_SIZES
    console.print(f"Making pools of {', '.join(f'{size:,}' for size in sizes)} blocks ...", style="dim")
    kinds = Pool, Cache, Buddies, Dictionary
    measured = in_turn([kind(size).round for size in sizes for kind in kinds], 50 if quick else 300, "Measuring")
    by_size = [ChainMap(*measured[i : i + len(kinds)][::-1]) for i in range(0, len(measured), len(kinds))]

    title = "Microseconds for one unit, by blocks in the pool (median ± half the range of the middle half)"
    table = grid(title, ["", *(f"{size:,}" for size in sizes), "ratio"])
    for name in by_size[0]:
        times = [results[name] for results in by_size]
        table.add_row(name, *map(str, times), f"{times[-1].median / times[0].median:.2f}")
    console.print(table)
    return [
        {"operation": name, "num_blocks": size, **times._asdict()}
        for size, results in zip(sizes, by_size)
        for name, times in results.items()
    ]


def charts(results: dict[str, list[dict[str, Any]]]) -> list[Chart]:
    rows = results["fit"]
    names = [row["memory"].replace("reserve ", "reserve\n").replace("paged, ", "paged,\n") for row in rows]
    return [
        Chart(
            "Sequences at a time in the same memory",
            "sequences",
            names,
            {"sequences": [row["sequences"] for row in rows]},
        ),
        Chart("Memory wasted", "%", names, {"waste": [row["waste"] for row in rows]}),
    ]


if __name__ == "__main__":
    sys.exit(main("memory", "How many sequences fit, and what managing the memory costs.", run, charts))
