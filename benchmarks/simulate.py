"""Does the simulator tell the truth, and how large may a simulation be? `python -m benchmarks.simulate`

    calibrate   the engine computes a few steps of known sizes (decodes of few and many sequences, short and long
                contexts, prompts), and four constants of this machine are fitted to their times
    predict     a run that none of those steps was taken from: requests come by Poisson's law for a while, with lengths
                like ShareGPT's, scaled down. The simulator says how it will go; then the engine does it
    scale       how long a simulation takes: ten times the requests should take ten times as long, in the same memory

On a CPU the model is GPT-2 with 124M parameters, on a GPU Llama-2-7B's shape, both with random weights. The goals: all
of it within 15 %, and the 99th percentile of the time to the first token within 20 %. A processor that other programs
use as well is not the machine that was calibrated: their share is printed. On a busy machine,
`NUMBA_NUM_THREADS=1 python -m benchmarks.simulate processor` takes the processor's time of one thread for the time.
`... million` only simulates a million requests, and `... million sharegpt` longer ones.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

import numpy as np

from benchmarks.charts import Chart
from benchmarks.measure import OtherPrograms, console, grid, main
from minipage import LLM, SamplingParams
from minipage.attention.quantize import kv_dtype
from minipage.simulate.configs import CONFIGS
from minipage.simulate.cost import CostModel, Sizes, Work
from minipage.simulate.machines import EPYC_2_CORES, GRAPHS, H100, ON_CPU, Machine, Overheads
from minipage.simulate.serve import Setting, serve
from minipage.simulate.workload import ALPACA, SHAREGPT, Arrival, Lengths, poisson, until

NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}
GOALS = {"end to end": 0.15, "tokens/s": 0.15, "mean latency": 0.15, "first token, 99 %": 0.2}
SIZES_OF_SIMULATIONS = (10_000, 100_000)
REPEATS = 5


class WallClock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.begin = perf_counter()

    def now(self) -> float:
        return perf_counter() - self.begin

    def wait(self, seconds: float) -> None:
        sleep(seconds)


class ProcessorClock:
    """The same in seconds that this process computes: waiting is free, and other programs do not count."""

    def __init__(self) -> None:
        self.begin = process_time()
        self.waited = 0.0

    def now(self) -> float:
        return process_time() - self.begin + self.waited

    def wait(self, seconds: float) -> None:
        self.waited += seconds


class Point(NamedTuple):
    """A step of known size, and how long it took."""

    work: Work
    seconds: float


def run(quick: bool) -> dict[str, Any]:
    others = OtherPrograms()
    results = {} if ONLY_SCALE else predict(quick)
    results["scale"] = [scale(count // (10 if quick else 1)) for count in SCALES]
    table = grid(
        "Simulations: Alpaca's lengths, OPT-13B, 25 requests/s", ("requests", "s", "us a token", "memory, MiB")
    )
    for each in results["scale"]:
        table.add_row(
            f"{each['requests']:,}", f"{each['seconds']:.1f}", f"{each['us_per_token']:.2f}", f"{each['mib']:.0f}"
        )
    console.print(table)
    console.print(f"Meanwhile other programs took {others} of the processors.\n")
    return results


def predict(quick: bool) -> dict[str, Any]:
    llm, name, dtype = load()
    factor = 0.25 if quick else 1.0
    lengths = Lengths("ShareGPT, scaled", 161.31 / 4, 50, 337.99 / 4, 74, llm.max_model_len)
    points = calibrate(llm, quick)
    cost = fit(points, start(llm, dtype))
    console.print(
        f"{name}: {cost.machine.bandwidth / 1e9:.1f} GB/s, {cost.machine.flops / 1e9:,.0f} GFLOP/s, "
        f"{1e3 * cost.overheads.step:.2f} ms a step, {1e6 * cost.overheads.request:.0f} us a request"
    )
    errors = [cost.seconds(point.work) / point.seconds - 1 for point in points]
    console.print("the fit, step by step:", ", ".join(f"{100 * error:+.0f} %" for error in errors), style="dim")
    pool, scheduler = llm.block_pool, llm.scheduler
    setting = Setting(
        cost, pool.num_blocks * pool.block_size, "paged", pool.block_size, llm.max_model_len, scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens, watermark=0.0,
    )  # fmt: skip
    rate = 0.6 * busy_rate(setting, lengths)
    arrivals = list(until(poisson(lengths.draw(3), rate, 3), 60 * factor))
    simulated = serve(setting, arrivals)
    real = serve_really(llm, arrivals)
    predicted = {
        "end to end": simulated.seconds,
        "tokens/s": simulated.tokens_per_second,
        "mean latency": simulated.latency.mean,
        "first token, median": simulated.time_to_first_token.quantile(0.5),
        "first token, 99 %": simulated.time_to_first_token.quantile(0.99),
        "between tokens": simulated.time_per_output_token.mean,
    }
    table = grid(f"{len(arrivals)} requests at {rate:.2f} a second", ("", "predicted", "real", "off", "goal"))
    for what, value in predicted.items():
        goal = f"{100 * GOALS[what]:.0f} %" if what in GOALS else ""
        table.add_row(what, f"{value:.4g}", f"{real[what]:.4g}", f"{100 * (value / real[what] - 1):+.1f} %", goal)
    console.print(table)
    constants = {"machine": cost.machine.__dict__, "overheads": cost.overheads.__dict__}
    return {"model": name, "predicted": predicted, "real": real, "rate": rate, **constants}


def load() -> tuple[LLM, str, str]:
    """An engine without weights of meaning; its model's name and dtype."""
    try:
        import torch

        has_gpu = torch.cuda.is_available()
    except ImportError:
        has_gpu = False
    name, dtype = ("Llama-2-7B", "bfloat16") if has_gpu else ("GPT-2", "float32")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(CONFIGS[name] | NO_TOKENS))
        options: dict[str, Any] = {"device": "cuda", "max_num_seqs": 128} if has_gpu else {"max_num_seqs": 32}
        llm = LLM(folder, load_format="dummy", dtype=dtype, max_num_batched_tokens=512, **options)
    return llm, name, dtype


def start(llm: LLM, dtype: str) -> CostModel:
    """Where the fit begins."""
    is_gpu = dtype != "float32"
    machine, overheads = (H100, GRAPHS) if is_gpu else (EPYC_2_CORES, ON_CPU)
    overheads = replace(overheads, kernel=0.0)  # a part of `step` here: one model has one number of layers
    return CostModel(Sizes.of(llm.config), machine, overheads, 1, 2.0 if is_gpu else 4.0, kv_dtype(dtype))


def calibrate(llm: LLM, quick: bool) -> list[Point]:
    """Times of decodes and prompts. The median of several steps, after some that do not count."""
    sizes = [(1, 32), (1, 600), (8, 32), (32, 32), (32, 300)] if not quick else [(1, 32), (8, 32), (32, 100)]
    points = [decode(llm, batch, context) for batch, context in sizes if batch <= llm.scheduler.max_num_seqs]
    return points + [prompt(llm, length) for length in (64, 256, 500)]


def decode(llm: LLM, batch: int, context: int) -> Point:
    for _ in range(batch):
        llm.add_request([1] * context, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True))
    while llm.scheduler.waiting or any(seq.num_uncomputed_tokens > 1 for seq in running(llm)):
        llm.step()
    for _ in range(3):
        llm.step()
    times = []
    for _ in range(10):
        clock = CLOCK()
        llm.step()
        times.append(clock.now())
    tokens = sum(seq.num_computed_tokens for seq in running(llm)) - 5 * batch  # in the middle of these steps
    while llm.has_unfinished_requests():
        llm.step()
    return Point(Work(batch, batch, batch, tokens, tokens), float(np.median(times)))


def running(llm: LLM) -> list[Any]:
    return [seq for group in llm.scheduler.running for seq in group.sequences]


def prompt(llm: LLM, length: int) -> Point:
    times = []
    for _ in range(REPEATS):
        llm.add_request([1] * length, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True))
        clock = CLOCK()
        while llm.has_unfinished_requests():
            llm.step()
        times.append(clock.now())
    return Point(Work(length, 1, 1, length, length * (length + 1) // 2), float(np.median(times)))


def fit(points: list[Point], cost: CostModel) -> CostModel:
    """Bandwidth, arithmetic, and the host's time for a step and for a request, to the least squared error in logs."""
    values = [cost.machine.bandwidth, cost.machine.flops, cost.overheads.step, cost.overheads.request]
    best, factor = error_of(points, cost, values), 1.5
    while factor > 1.002:
        is_better = False
        for i in range(len(values)):
            for step in (factor, 1 / factor):
                tried = [value * (step if i == k else 1) for k, value in enumerate(values)]
                if (error := error_of(points, cost, tried)) < best:
                    values, best, is_better = tried, error, True
        if not is_better:
            factor = factor**0.5
    return with_constants(cost, values)


def error_of(points: list[Point], cost: CostModel, values: list[float]) -> float:
    model = with_constants(cost, values)
    return float(sum(np.log(model.seconds(point.work) / point.seconds) ** 2 for point in points))


def with_constants(cost: CostModel, values: list[float]) -> CostModel:
    machine: Machine = replace(cost.machine, bandwidth=values[0], flops=values[1])
    overheads: Overheads = replace(cost.overheads, step=values[2], request=values[3])
    return replace(cost, machine=machine, overheads=overheads)


def busy_rate(setting: Setting, lengths: Lengths) -> float:
    """About as much as can be served."""
    queue = [Arrival(0.0, *pair) for pair in islice(lengths.draw(0), 200)]
    return len(queue) / serve(setting, queue).seconds


def serve_really(llm: LLM, arrivals: list[Arrival]) -> dict[str, float]:
    """The same requests on the engine, in real time."""
    clock, following = CLOCK(), 0
    arrived: dict[str, Arrival] = {}
    first: dict[str, float] = {}
    finished: dict[str, float] = {}
    while following < len(arrivals) or llm.has_unfinished_requests():
        now = clock.now()
        while following < len(arrivals) and arrivals[following].time <= now:
            arrival = arrivals[following]
            params = SamplingParams(max_tokens=arrival.num_output_tokens, temperature=0, ignore_eos=True)
            arrived[llm.add_request([1] * arrival.num_prompt_tokens, params, request_id=str(following))] = arrival
            following += 1
        if not llm.has_unfinished_requests():
            clock.wait(max(0.0, arrivals[following].time - clock.now()))
            continue
        for output in llm.step():
            now = clock.now()
            first.setdefault(output.request_id, now)
            if output.finished:
                finished[output.request_id] = now
    ttft = [first[name] - arrival.time for name, arrival in arrived.items()]
    latency = [finished[name] - arrival.time for name, arrival in arrived.items()]
    gaps = [
        (finished[name] - first[name]) / (arrival.num_output_tokens - 1)
        for name, arrival in arrived.items()
        if arrival.num_output_tokens > 1
    ]
    seconds = max(finished.values())
    return {
        "end to end": seconds,
        "tokens/s": sum(arrival.num_output_tokens for arrival in arrivals) / seconds,
        "mean latency": float(np.mean(latency)),
        "first token, median": float(np.median(ttft)),
        "first token, 99 %": float(np.quantile(ttft, 0.99)),
        "between tokens": float(np.mean(gaps)),
    }


def scale(count: int) -> dict[str, float]:
    """Simulate this many requests: processor time, and the most memory that this process has had so far."""
    from minipage.simulate.paper import SERVERS, setting

    begin = process_time()
    report = serve(setting(SERVERS["OPT-13B"], "paged"), islice(poisson(DRAWN.draw(0), RATE, 0), count))
    seconds = process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "requests": report.num_requests, "tokens": report.num_tokens, "seconds": seconds,
        "us_per_token": 1e6 * seconds / report.num_tokens, "mib": peak,
    }  # fmt: skip


def charts(results: dict[str, Any]) -> list[Chart]:
    if "real" not in results:
        return []
    labels = [what for what in results["real"] if "token" in what and "/" not in what]
    series = {name: [1e3 * results[name][what] for what in labels] for name in ("predicted", "real")}
    return [Chart("Predicted and real", "ms", labels, series)]


ONLY_SCALE, SCALES, DRAWN, RATE = False, SIZES_OF_SIMULATIONS, ALPACA, 25.0
CLOCK: type[WallClock] | type[ProcessorClock] = WallClock

if __name__ == "__main__":
    if "million" in sys.argv:  # only the simulation of a million requests
        sys.argv.remove("million")
        ONLY_SCALE, SCALES = True, (1_000_000,)
    if "processor" in sys.argv:
        sys.argv.remove("processor")
        CLOCK = ProcessorClock
    if "sharegpt" in sys.argv:
        sys.argv.remove("sharegpt")
        DRAWN, RATE = SHAREGPT, 1.8
    sys.exit(main("simulate", "Does the simulator tell the truth, and how large may a simulation be?", run, charts))
