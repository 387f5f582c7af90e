"""How long does a device wait for the host between two steps? `python -m benchmarks.overlap`, which needs no GPU.

A pretend device takes as long for a step as the CUDA graph of GPT-2 124M took on an H200 (docs/gpu.md), and computes
nothing. The host does all that it has to do: plan, make inputs, hand out tokens, decode text. Plain steps and steps
that overlap take turns; the lanes of the last round are written for ui.perfetto.dev.
"""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import numpy as np

from benchmarks.charts import Chart
from benchmarks.measure import console, grid, main
from minipage import LLM, SamplingParams
from minipage.simulate.device import PretendDevice
from minipage.trace.recording.lanes import Lanes, watch_lanes

STEPS = {1: 565e-6, 64: 685e-6, 256: 1120e-6}  # requests: seconds of a step
NUM_TOKENS, ROUNDS = 100, 4
PARAMS = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


def run(quick: bool) -> dict[str, Any]:
    rows = []
    table = grid("a step, µs", ["requests", "the device", "plain", "idle", "overlapped", "idle", "host, of both"])
    for num_requests, seconds in list(STEPS.items())[: 2 if quick else None]:
        engines = {name: LLM(max_num_batched_tokens=8192) for name in ("plain", "overlapped")}
        for name, llm in engines.items():
            PretendDevice(llm, seconds, overlap=name == "overlapped")
        row: dict[str, Any] = {"requests": num_requests, "device_us": 1e6 * seconds}
        for name, llm in list(engines.items()) * ROUNDS:
            with watch_lanes(llm) as lanes:
                llm.generate([[1, 2, 3, 4]] * num_requests, PARAMS)
            host = 1e6 * sum(span.stop - span.start for span in lanes.of("host")) / NUM_TOKENS
            lanes.save(f"lanes-{name}-{num_requests}.json")
            found = {"step_us": step_us(lanes), "idle": lanes.idle, "host_us": host}
            row[name] = min(row.get(name, found), found, key=lambda each: each["step_us"])
        rows.append(row)
        both = [row[name] for name in engines]
        cells = [f"{cell:,.0f}" for each in both for cell in (each["step_us"], 100 * each["idle"])]
        cells[1::2] = [f"{cell} %" for cell in cells[1::2]]
        hosts = ", ".join(f"{each['host_us']:,.0f}" for each in both)
        table.add_row(str(num_requests), f"{1e6 * seconds:,.0f}", *cells, hosts)
    console.print(table)
    return {"rows": rows}


def step_us(lanes: Lanes) -> float:
    return 1e6 * median(np.diff([span.start for span in lanes.of("device")]).tolist())


def charts(results: dict[str, Any]) -> list[Chart]:
    labels = [str(row["requests"]) for row in results["rows"]]
    series = {name: [row[name]["step_us"] for row in results["rows"]] for name in ("plain", "overlapped")}
    return [Chart("A step with a pretend device, by the number of requests", "µs", labels, series)]


if __name__ == "__main__":
    sys.exit(main("overlap", __doc__.partition("\n")[0], run, charts))
