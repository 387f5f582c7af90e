"""What does admission save? `python -m benchmarks.admission`

The real scheduler on the simulator's virtual clock: OPT-13B on the A100 of the paper's Figure 12, with more requests
than it can serve, so that the pool is always full. Each way to admit serves the same requests. The numbers are the same
on every machine.

    ShareGPT        prompts of 161 tokens and answers of 338 on average
    long prompts    of 1,200 tokens, computed in chunks of 256, and answers of 150
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice
from typing import Any

from rich.table import Table

from benchmarks.measure import console, main
from minipage.simulate.configs import find_architecture
from minipage.simulate.cost import CostModel, Sizes
from minipage.simulate.machines import A100_40, PAPER_SYSTEM
from minipage.simulate.serve import Report, Setting, serve
from minipage.simulate.workload import SHAREGPT, Lengths, poisson

COST = CostModel(Sizes.of(find_architecture("OPT-13B")), A100_40, PAPER_SYSTEM)
SETTING = Setting(COST, 15_728, watermark=0.0)
LONG = Lengths("long prompts", 1200, 400, 150, 100)
IN_CHUNKS = replace(SETTING, max_num_batched_tokens=256)
WORKLOADS = {"ShareGPT": (SHAREGPT, 2.5, SETTING), "long prompts": (LONG, 4.0, IN_CHUNKS)}  # and requests a second
NUM_REQUESTS = 500
WATERMARKS = 0.0, 0.01, 0.05, 0.1


def report(name: str, watermark: float, reserve: bool, num_requests: int = NUM_REQUESTS) -> Report:
    lengths, rate, setting = WORKLOADS[name]
    setting = replace(setting, watermark=watermark, scheduler_reserve_full_isl=reserve)
    return serve(setting, islice(poisson(lengths.draw(0), rate, 0), num_requests))


def run(quick: bool) -> list[dict[str, Any]]:
    shown = Table("workload", "admitted if there is room for", "watermark", "preemptions", "tokens/s", "latency, s")
    found = []
    for name in WORKLOADS:
        for reserve in True, False:
            for watermark in WATERMARKS:
                result = report(name, watermark, reserve, NUM_REQUESTS // 5 if quick else NUM_REQUESTS)
                shown.add_row(
                    name, "the prompt" if reserve else "a chunk", f"{watermark:.0%}",
                    f"{result.num_preemptions / result.num_requests:.3f}", f"{result.tokens_per_second:,.0f}",
                    f"{result.latency.mean:.1f}",
                )  # fmt: skip
                found.append({"workload": name, "reserve": reserve, "watermark": watermark, **result.numbers()})
    console.print(shown)
    return found


if __name__ == "__main__":
    sys.exit(main("admission", "What admission saves.", run))
