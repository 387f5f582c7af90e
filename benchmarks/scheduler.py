"""What does a scheduling step cost, by the number of running sequences? `python -m benchmarks.scheduler`

While the scheduler thinks, the GPU waits. A step of a large model takes 10 to 50 ms; the scheduler's share should be a
small part of that, so the goal is 1.0 ms at most for 256 running sequences.

A step is `schedule()` and `update()`. Every sequence has 16 to 512 tokens of prompt behind it and generates one token a
step (one in 16 takes a new block); nobody arrives, finishes or is preempted, and there are always enough blocks.

    plain              a sequence for each request
    prefix caching     the same, with full blocks published as they fill up, one sequence in 16 each step
    groups of 4        four samples for each request, that were forked after the prompt
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.measure import Measured, Stopwatch, console, grid, in_turn, main
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.scheduling import Scheduler, Sequence, SequenceGroup

NUM_RUNNING = 1, 4, 16, 64, 256, 1024  # sequences
MAX_PROMPT, MAX_TOKENS = 512, 1024
BLOCK_SIZE = 16
GOAL = 256, 1000.0  # sequences, microseconds


class Steps:
    """A scheduler in the middle of its work, with `num_seqs` running sequences in groups of `group_size`."""

    def __init__(self, num_seqs: int, group_size: int = 1, prefix_caching: bool = False) -> None:
        pool = BlockPool(num_seqs * MAX_TOKENS // BLOCK_SIZE, BLOCK_SIZE)
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
            for seq in chunk.samplers:
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
    measured = in_turn([kinds[kind](n).round for kind, n in cases], 50 if quick else 300, "Measuring")
    results = dict(zip(cases, measured))

    table = grid("Microseconds for a step (median ± half the range of the middle half)", ["sequences", *kinds])
    for n in sizes:
        table.add_row(f"{n:,}", *(str(results[kind, n]["step"]) if (kind, n) in results else "" for kind in kinds))
    console.print(table)
    say_whether_fast_enough(results["plain", GOAL[0]])
    return [
        {"kind": kind, "num_running": n, "part": part, **times._asdict()}
        for (kind, n), parts in results.items()
        for part, times in parts.items()
    ]


def say_whether_fast_enough(parts: dict[str, Measured]) -> None:
    num_seqs, goal = GOAL
    step, schedule, update = (parts[name].median / 1000 for name in ("step", "schedule", "update"))
    console.print(
        f"{num_seqs} running, plain: {step:.2f} ms a step ({schedule:.2f} schedule, {update:.2f} update). "
        f"The goal of {goal / 1000:.1f} ms is {'met' if step <= goal / 1000 else 'not met'}.\n"
    )


if __name__ == "__main__":
    sys.exit(main("scheduler", "What a scheduling step costs, by the number of running sequences.", run))
