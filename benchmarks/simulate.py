"""Does the simulator tell the truth, and how large may a simulation be? `python -m benchmarks.simulate`

    calibrate   the engine computes a few steps of known sizes (decodes of few and many sequences, short and long
                contexts, prompts). Steps of other sizes lie between these (simulate/measured.py). On a GPU, whose host
                plans a step while the last one is computed, five constants of a roofline are fitted to them besides:
                that says what the host's part is, and what it would predict by itself is printed, too
    predict     a run that none of those steps was taken from: requests come by Poisson's law for a while, with lengths
                like ShareGPT's, scaled down. The simulator says how it will go; then the engine does it
    scale       how long a simulation takes: ten times the requests should take ten times as long, in the same memory

On a CPU the model is GPT-2 with 124M parameters, on a GPU Llama-2-7B's shape, both with random weights. The goals: all
of it within 15 %, and the 99th percentile of the time to the first token within 20 %. A processor that other programs
use as well is not the machine that was calibrated: their share is printed. On a busy machine,
`NUMBA_NUM_THREADS=1 python -m benchmarks.simulate processor` takes the processor's time of one thread for the time.
`... predict` leaves out what is simulated only, `... million` simulates a tenth of a million requests and then a
million, and nothing else, and `... million sharegpt` longer ones.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from benchmarks.calibrate import ProcessorClock, WallClock, calibrate, capture_graphs, fit, greedy, start
from benchmarks.charts import Chart
from benchmarks.measure import OtherPrograms, console, grid, main
from minipage import LLM
from minipage.simulate.configs import CONFIGS
from minipage.simulate.cost import CostModel
from minipage.simulate.measured import Timed, measured
from minipage.simulate.serve import Report, Setting, serve
from minipage.simulate.stand_in import Histogram
from minipage.simulate.workload import ALPACA, SHAREGPT, Arrival, Lengths, poisson, until

NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}
GOALS = {"end to end": 0.15, "tokens/s": 0.15, "mean latency": 0.15, "first token, 99 %": 0.2}
SIZES_OF_SIMULATIONS: tuple[int, ...] = (10_000, 100_000)
SECONDS = 180.0  # for which requests come, on a CPU: the slowest hundredth of a few is luck


def run(quick: bool) -> dict[str, Any]:
    others = OtherPrograms()
    results = {} if ONLY_SCALE else predict(quick)
    results["scale"] = [scale(count // (10 if quick else 1)) for count in SCALES]
    if results["scale"]:
        show_scale(results["scale"])
    console.print(f"Meanwhile other programs took {others} of the processors.\n")
    return results


def show_scale(rows: list[dict[str, float]]) -> None:
    table = grid(
        "Simulations: Alpaca's lengths, OPT-13B, 25 requests/s", ("requests", "s", "us a token", "memory, MiB")
    )
    for each in rows:
        table.add_row(
            f"{each['requests']:,}", f"{each['seconds']:.1f}", f"{each['us_per_token']:.2f}", f"{each['mib']:.0f}"
        )
    console.print(table)


def predict(quick: bool) -> dict[str, Any]:
    llm, name, dtype = load()
    is_gpu = dtype != "float32"
    lengths = Lengths("ShareGPT, scaled", 161.31 / 4, 50, 337.99 / 4, 74, llm.max_model_len)
    if is_gpu:
        capture_graphs(llm)
    points = calibrate(llm, CLOCK(), quick)
    roofline = fit(points, start(llm, dtype)) if is_gpu else start(llm, dtype)
    cost = measured(roofline, points)
    show_fit(name, cost, points, is_gpu)
    pool, scheduler = llm.block_pool, llm.scheduler
    setting = Setting(
        cost, pool.num_blocks * pool.block_size, "paged", pool.block_size, llm.max_model_len, scheduler.max_num_seqs,
        scheduler.max_num_batched_tokens, watermark=0.0,
    )  # fmt: skip
    rate = 0.6 * busy_rate(setting, lengths)
    arrivals = list(until(poisson(lengths.draw(3), rate, 3), 15.0 if quick else 30.0 if is_gpu else SECONDS))
    predicted = numbers(serve(setting, arrivals))
    print_line("predicted", predicted)  # before the run, which takes as long as its requests come
    if is_gpu:
        print_line("by the roofline alone", numbers(serve(replace(setting, cost=roofline), arrivals)))
    real = serve_really(llm, arrivals)
    print_line("real", real)
    table = grid(f"{len(arrivals)} requests at {rate:.2f} a second", ("", "predicted", "real", "off", "goal"))
    for what, value in predicted.items():
        goal = f"{100 * GOALS[what]:.0f} %" if what in GOALS else ""
        table.add_row(what, f"{value:.4g}", f"{real[what]:.4g}", f"{100 * (value / real[what] - 1):+.1f} %", goal)
    console.print(table)
    constants = {"machine": cost.machine.__dict__, "overheads": cost.overheads.__dict__}
    steps = [[*point.work, point.seconds] for point in points]
    return {"model": name, "predicted": predicted, "real": real, "rate": rate, **constants, "steps": steps}


def print_line(name: str, values: dict[str, float]) -> None:
    console.print(f"{name}: {', '.join(f'{what} {value:.4g}' for what, value in values.items())}", style="dim")


def numbers(simulated: Report) -> dict[str, float]:
    return {
        "end to end": simulated.seconds,
        "tokens/s": simulated.tokens_per_second,
        "mean latency": simulated.latency.mean,
        "first token, median": simulated.time_to_first_token.quantile(0.5),
        "first token, 99 %": simulated.time_to_first_token.quantile(0.99),
        "between tokens": simulated.time_per_output_token.mean,
    }


def show_fit(name: str, cost: CostModel, points: list[Timed], is_gpu: bool) -> None:
    console.print(f"{name}: {cost.machine.bandwidth / 1e9:,.1f} GB/s")
    if is_gpu:
        overheads = cost.overheads
        console.print(
            f"{cost.machine.flops / 1e12:,.0f} TFLOP/s; the host: {1e3 * overheads.step:.2f} ms a step, "
            f"{1e6 * overheads.request:.0f} us a request, {1e6 * overheads.eager:.0f} us a layer without a graph"
        )
    for work, seconds in points:
        about = f"{work.num_tokens} tokens of {work.num_requests} requests, {work.num_read:,} looked at"
        off = 100 * (cost.seconds(work) / seconds - 1)
        console.print(f"  {about}: {1e3 * seconds:.2f} ms, by the model {off:+.0f} %", style="dim")


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
            params, ids = greedy(arrival.num_output_tokens), [1] * arrival.num_prompt_tokens
            arrived[llm.add_request(ids, params, request_id=str(following))] = arrival
            following += 1
        if not llm.has_unfinished_requests():
            clock.wait(max(0.0, arrivals[following].time - clock.now()))
            continue
        for output in llm.step():
            now = clock.now()
            first.setdefault(output.request_id, now)
            if output.finished:
                finished[output.request_id] = now
    ttft = Histogram()  # as in the simulation
    for name, arrival in arrived.items():
        ttft.add(first[name] - arrival.time)
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
        "first token, median": ttft.quantile(0.5),
        "first token, 99 %": ttft.quantile(0.99),
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
    if "predict" in sys.argv:
        sys.argv.remove("predict")
        SCALES = ()
    if "million" in sys.argv:  # only the simulation of a million requests
        sys.argv.remove("million")
        ONLY_SCALE, SCALES = True, (100_000, 1_000_000)
    if "processor" in sys.argv:
        sys.argv.remove("processor")
        CLOCK = ProcessorClock
    if "sharegpt" in sys.argv:
        sys.argv.remove("sharegpt")
        DRAWN, RATE = SHAREGPT, 1.8
    sys.exit(main("simulate", "Does the simulator tell the truth, and how large may a simulation be?", run, charts))
