"""What does a scheduling step cost, by the number of running sequences? `python -m benchmarks.scheduler`

While the scheduler thinks, the GPU waits. A step of a large model takes 10 to 50 ms; the scheduler's share should be a
small part of that, so the goal is 0.2 ms at most for 256 running sequences, whatever the size of the pool.

A step is `schedule()` and `update()`. Every sequence has 16 to 512 tokens of prompt behind it and generates one token a
step (one in 16 takes a new block); nobody arrives, finishes or is preempted, and there are always enough blocks.

    plain              a sequence for each request
    prefix caching     the same, with full blocks published as they fill up, one sequence in 16 each step
    groups of 4        four samples for each request, that were forked after the prompt

The second table has 256 running sequences in pools of different sizes, and what a step costs there should be the same.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.charts import Chart
from benchmarks.measure import Measured, Stopwatch, console, grid, in_turn, main
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.scheduling import Scheduler, Sequence, SequenceGroup

NUM_RUNNING = 1, 4, 16, 64, 256, 1024  # sequences
MAX_PROMPT, MAX_TOKENS = 512, 1024
BLOCK_SIZE = 16
GOAL = 256, 200.0  # sequences, microseconds
POOL_SIZES = 16_384, 102_400, 1_024_000  # blocks; the first is what 256 sequences need at most


class Steps:
    """A scheduler in the middle of its work, with `num_seqs` running sequences in groups of `group_size`."""

    def __init__(
        self, num_seqs: int, group_size: int = 1, prefix_caching: bool = False, num_blocks: int | None = None
    ) -> None:
        pool = BlockPool(num_blocks or num_seqs * MAX_TOKENS // BLOCK_SIZE, BLOCK_SIZE)
        cache = PrefixCache(pool) if prefix_caching else None
        self.scheduler = Scheduler(pool, num_seqs, num_seqs * MAX_PROMPT, prefix_cache=cache)
        generator = random.Random(num_seqs)
        for i in range(num_seqs // group_size):
            prompt = [generator.randrange(50_000) for _ in range(generator.randint(16, MAX_PROMPT))]
            samples = [Sequence(f"{i}-{j}", prompt, BlockTable(pool)) for j in range(group_size)]
            self.scheduler.add(SequenceGroup(f"{i}", samples, MAX_TOKENS, group_size))
        while self.scheduler.waiting:
            self.round()

    def round(self) -> dict[str, float]:
        schedule, update = Stopwatch(), Stopwatch()
        with schedule.running():
            plan = self.scheduler.schedule()
        with update.running():
            self.scheduler.update(plan)
        for chunk in plan.chunks:
            for seq in chunk.receivers:
                seq.token_ids.append(len(seq.token_ids))
        times = {"schedule": schedule.seconds, "update": update.seconds}
        return {"step": sum(times.values()), **times}


def run(quick: bool) -> list[dict[str, Any]]:
    sizes = [n for n in NUM_RUNNING if n <= GOAL[0]] if quick else NUM_RUNNING
    kinds: dict[str, Callable[[int], Steps]] = {
        "plain": Steps,
        "prefix caching": lambda n: Steps(n, prefix_caching=True),
        "groups of 4": lambda n: Steps(n, group_size=4),
    }
    cases = [(kind, n) for n in sizes for kind in kinds if n >= 4 or kind != "groups of 4"]
    pools = POOL_SIZES[:2] if quick else POOL_SIZES
    steps = [kinds[kind](n) for kind, n in cases] + [Steps(GOAL[0], num_blocks=num_blocks) for num_blocks in pools]
    measured = in_turn([each.round for each in steps], 50 if quick else 300, "Measuring")
    results = dict(zip(cases, measured))
    by_pool = dict(zip(pools, measured[len(cases) :]))

    table = grid("Microseconds for a step (median ± half the range of the middle half)", ["sequences", *kinds])
    for n in sizes:
        table.add_row(f"{n:,}", *(str(results[kind, n]["step"]) if (kind, n) in results else "" for kind in kinds))
    console.print(table)
    table = grid(f"Microseconds for a step with {GOAL[0]} sequences", ["blocks in the pool", "plain"])
    for num_blocks, parts in by_pool.items():
        table.add_row(f"{num_blocks:,}", str(parts["step"]))
    console.print(table)
    say_whether_fast_enough(results["plain", GOAL[0]])
    return [
        {"kind": kind, "num_running": n, "part": part, **times._asdict()}
        for (kind, n), parts in results.items()
        for part, times in parts.items()
    ] + [
        {"kind": "plain", "num_running": GOAL[0], "num_blocks": num_blocks, "part": part, **times._asdict()}
        for num_blocks, parts in by_pool.items()
        for part, times in parts.items()
    ]


def say_whether_fast_enough(parts: dict[str, Measured]) -> None:
    num_seqs, goal = GOAL
    step, schedule, update = (parts[name].median / 1000 for name in ("step", "schedule", "update"))
    console.print(
        f"{num_seqs} running, plain: {step:.2f} ms a step ({schedule:.2f} schedule, {update:.2f} update). "
        f"The goal of {goal / 1000:.1f} ms is {'met' if step <= goal / 1000 else 'not met'}.\n"
    )


def charts(results: list[dict[str, Any]]) -> list[Chart]:
    rows = [row for row in results if row["part"] == "step"]
    sizes = sorted({row["num_running"] for row in rows})
    by_kind = {(row["kind"], row["num_running"]): row["median"] for row in rows if "num_blocks" not in row}
    by_pool = {row["num_blocks"]: row["median"] for row in rows if "num_blocks" in row}
    series = {kind: [by_kind.get((kind, n)) for n in sizes] for kind in dict.fromkeys(kind for kind, _ in by_kind)}
    return [
        Chart("A scheduling step", "µs", [f"{n:,} running" for n in sizes], series, "lines", logarithmic=True),
        Chart(
            f"A scheduling step, {GOAL[0]} running",
            "µs",
            [f"{n:,} blocks" for n in by_pool],
            {"plain": list(by_pool.values())},
            goal=GOAL[1],
        ),
    ]


if __name__ == "__main__":
    sys.exit(main("scheduler", "What a scheduling step costs, by the number of running sequences.", run, charts))
