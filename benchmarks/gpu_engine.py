"""How fast does the engine decode on a GPU, beside transformers' continuous batching? `python -m benchmarks.gpu_engine`

GPT-2 with 124 million random weights in bfloat16, batches of 1 to 256 requests, each with a prompt of 128 tokens, that
generate 64 more, greedily. Everybody gets the same requests, one engine after the other, in one process.

    overlap        LLM(device="cuda"): a decode step is a CUDA graph, and the next is planned while it is computed
    graphs         the same with async_scheduling=False: each step is planned when the last one has come to its end
    eager          and with enforce_eager=True: every kernel launched by the host
    transformers   generate_batch, in the fastest of several ways: with and without its own CUDA graphs and overlapped
                   steps

A step is the time between two tokens of a request: the median over a run. In a run all requests start together, so for
us it is the time from the end of a step to that of the next. Everybody runs four times; in the first it
compiles and captures its graphs, and of the others the fastest counts. The first token is timed from when the
requests were handed over, together. Nobody is told of a token before the text is complete: so does generate_batch.

The goal is a step in at most a fifth of transformers' time, at every batch size.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.charts import Chart
from benchmarks.measure import console, grid, main, needed, require_gpu
from minipage import LLM, SamplingParams

with needed():
    import torch
    from transformers import ContinuousBatchingConfig, GenerationConfig, GPT2Config, GPT2LMHeadModel

BATCHES = 1, 16, 64, 256
PROMPT_LEN, NUM_TOKENS = 128, 64
GOAL = 7.0
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, top_k=50, top_p=0.95, seed=1, max_tokens=NUM_TOKENS, ignore_eos=True)
# The worst case: to a model of random weights all tokens are likely, so that the vocabulary has to be sorted.
NUCLEUS = SamplingParams(temperature=0.8, top_p=0.95, seed=1, max_tokens=NUM_TOKENS, ignore_eos=True)
RUNS = 3  # of which the fastest counts, for everybody
NAMES = {
    "overlap": "graphs, overlapped",
    "graphs": "graphs",
    "eager": "eager",
    "top_k": "graphs, top_k 50, top_p 0.95",
    "top_p": "graphs, top_p 0.95",
    "transformers": "transformers",
}
PHASES = ("schedule", "copy", "forward", "sample", "update")


WAYS = (  # to run transformers, the fastest first: there is not time for all of them
    {"use_cuda_graph": True, "use_async_batching": True},
    {"use_cuda_graph": True, "use_async_batching": False},
    {"use_cuda_graph": False, "use_async_batching": False},
)
PATIENCE = 100  # seconds for all of them together


def run(quick: bool) -> dict[str, Any]:
    require_gpu()
    batches = BATCHES[1:3] if quick else BATCHES
    requests = [np.random.default_rng(n).integers(0, 50_000, (n, PROMPT_LEN)).tolist() for n in batches]
    console.print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).to(torch.bfloat16).save_pretrained(folder)
        ours = our_runs(folder, requests)
        theirs = transformers_runs(folder, WAYS[:1] if quick else WAYS, requests, PATIENCE)
    results = []
    for i, (batch, row) in enumerate(zip(batches, ours)):
        row["batch"] = batch
        if theirs:
            row["transformers"] = fastest([runs[i] for runs in theirs])
            row["ratio"] = row["transformers"]["step_us"] / row["overlap"]["step_us"]
        texts = {name: row[name].pop("texts") for name in NAMES if name in row}
        greedy = [name for name in ("overlap", "eager", "transformers") if name in texts]
        row["says the same"] = {name: same(texts["graphs"], texts[name]) for name in greedy}
        results.append(row)
        show(row)
    if worst := min((row["ratio"] for row in results if "ratio" in row), default=None):
        console.print(f"a step takes at most 1/{worst:.1f} of transformers' time (goal: 1/{GOAL:g})")
    every_way = [[{k: v for k, v in run.items() if k != "texts"} for run in runs] for runs in theirs]
    gpu = torch.cuda.get_device_name()
    return {"gpu": gpu, "cuda": torch.version.cuda, "batches": results, "transformers in every way": every_way}


def our_runs(folder: str, requests: list[list[list[int]]]) -> list[dict[str, Any]]:
    """Each batch of prompts, in each of our ways."""
    ways_to_run: list[dict[str, Any]] = [{}, {"async_scheduling": False}]
    ways_to_run.append({"async_scheduling": False, "enforce_eager": True})
    overlap, graphs, eager = (LLM(folder, device="cuda", dtype="bfloat16", memory="4GiB", **how) for how in ways_to_run)
    rows = []
    for prompts in requests:
        row: dict[str, Any] = {}
        ways = (overlap, GREEDY), (graphs, GREEDY), (eager, GREEDY), (overlap, DRAWN), (overlap, NUCLEUS)
        for name, (llm, params) in zip(NAMES, ways):
            serve(llm, prompts, params)  # compiles, and captures the graph of this size
            row[name] = fastest([serve(llm, prompts, params) for _ in range(RUNS)])
        row["graph_us"] = replay_time(graphs, prompts)
        row["phases_us"] = phases(graphs, prompts)
        console.print(f"{len(prompts)} requests: {row['overlap']['step_us']:.0f} µs a step", style="dim")
        rows.append(row)
    return rows


def serve(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> dict[str, Any]:
    """Generate for all prompts at once; microseconds, and the texts."""
    ends: list[float] = []  # of steps
    step, of_its_own = llm._step, "_step" in vars(llm)

    def watched() -> None:
        step()
        ends.append(perf_counter())

    llm._step = watched  # type: ignore[method-assign]
    start = perf_counter()
    outputs = llm.generate(prompts, params)
    stop = perf_counter()
    del llm._step
    if of_its_own:
        llm._step = step  # type: ignore[method-assign]
    firsts = [output.metrics.first_token_time or stop for output in outputs]
    texts = [output.outputs[0].token_ids for output in outputs]
    return summary(start, stop, firsts, [ends], sum(map(len, texts))) | {"texts": texts}


def fastest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return min(runs, key=lambda run: run["step_us"])


def summary(
    start: float, stop: float, firsts: list[float], times: list[list[float]], num_tokens: int
) -> dict[str, Any]:
    """firsts: when each request got its first token; times: when tokens came, of one request or of all."""
    return {
        "step_us": 1e6 * median(float(gap) for of_request in times for gap in np.diff(of_request)),
        "first_token_us": 1e6 * median(first - start for first in firsts),
        "tokens_per_second": num_tokens / (stop - start),
    }


def transformers_runs(
    folder: str, ways: Sequence[dict[str, bool]], requests: list[list[list[int]]], seconds: float
) -> list[list[dict[str, Any]]]:
    """What transformers does with each batch, in each way; the ways that it finished in this time.

    In another process, for a failure on the GPU ends whatever a process does there.
    """
    process = get_context("spawn").Process(target=run_transformers, args=(folder, ways, requests))
    process.start()
    process.join(seconds)
    if process.exitcode != 0:
        console.print(f"transformers did not finish all its ways in {seconds:g} s: exit code {process.exitcode}")
        process.kill()
    return [json.loads(file.read_text()) for file in sorted(Path(folder).glob("way-*.json"))]


def run_transformers(folder: str, ways: Sequence[dict[str, bool]], requests: list[list[list[int]]]) -> None:
    """Run every batch in every way, and write a file way-N.json into the folder after each."""
    generation = GenerationConfig(max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for i, settings in enumerate(ways):
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.bfloat16).eval().to("cuda")
        model.set_attn_implementation("paged|sdpa")
        num_blocks, most = max(map(len, requests)) + 8, max(BATCHES)
        config = ContinuousBatchingConfig(
            num_blocks=num_blocks, max_batch_tokens=2048, max_requests_per_batch=most, **settings
        )
        options = {"continuous_batching_config": config, "record_timestamps": True, "persistent_manager": True}
        runs = []
        for prompts in requests:
            timed = []
            for _ in range(1 + RUNS if settings["use_cuda_graph"] else 2):  # in the first, it captures its graphs
                start = perf_counter()
                # No warm-up before: it tries positions beyond GPT-2's context, and the GPU stops.
                outputs = list(model.generate_batch(prompts, generation, warmup=False, **options).values())
                times = [output.timestamps for output in outputs]
                texts = [output.generated_tokens for output in outputs]
                firsts = [of_request[0] for of_request in times]
                run = summary(start, max(of_request[-1] for of_request in times), firsts, times, sum(map(len, texts)))
                timed.append(run | {"texts": texts, "settings": settings})
            runs.append(fastest(timed[1:]))
        (Path(folder) / f"way-{i}.json").write_text(json.dumps(runs))


def replay_time(llm: LLM, prompts: list[list[int]]) -> float:
    """Microseconds that a replay of the batch's graph keeps the GPU busy, by the GPU's own clock, in mid-run: a graph
    reads its inputs from where the last step has put them."""
    ids = [llm.add_request(prompt, GREEDY) for prompt in prompts]
    while llm.scheduler.waiting:
        llm.step()
    for _ in range(5):  # now all of them decode
        llm.step()
    graph, _ = llm.runner._graphs[min(key for key in llm.runner._graphs if key[0] >= len(prompts))]
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(20):
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(1e3 * start.elapsed_time(stop))
    for request_id in ids:
        llm.abort(request_id)
    llm.step()  # tells of the aborts
    return median(times)


def phases(llm: LLM, prompts: list[list[int]]) -> dict[str, float]:
    """Median microseconds of the host in each phase of a decode step; `sample` waits for the GPU."""
    spent: dict[str, list[float]] = {name: [] for name in PHASES}

    def timed(name: str) -> Any:
        method = getattr(llm, name)

        def call(*arguments: Any) -> Any:
            start = perf_counter()
            result = method(*arguments)
            spent[name].append(1e6 * (perf_counter() - start))
            return result

        return call

    for name in PHASES:
        setattr(llm, name, timed(name))
    llm.generate(prompts, GREEDY)
    for name in PHASES:
        delattr(llm, name)
    return {name: median(times) for name, times in spent.items()}


def same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of tokens that are equal."""
    return float(np.mean([a == b for one, other in zip(ours, theirs) for a, b in zip(one, other)]))


def show(row: dict[str, Any]) -> None:
    table = grid(f"{row['batch']} requests", ["", "step, µs", "first token, ms", "tokens/s"])
    for name in [name for name in NAMES if name in row]:
        numbers = row[name]
        table.add_row(
            NAMES[name],
            f"{numbers['step_us']:,.0f}",
            f"{numbers['first_token_us'] / 1e3:.1f}",
            f"{numbers['tokens_per_second']:,.0f}",
        )
    console.print(table)
    host = ", ".join(f"{name} {time:,.0f}" for name, time in row["phases_us"].items())
    console.print(f"a replay keeps the GPU busy for {row['graph_us']:,.0f} µs; the host: {host} µs")
    equal = ", ".join(f"{name} {share:.0%}" for name, share in row["says the same"].items())
    console.print(f"tokens equal to those with graphs: {equal}")
    if "ratio" in row:
        console.print(f"ratio {row['ratio']:.1f}, with {row['transformers']['settings']}")


def charts(results: dict[str, Any]) -> list[Chart]:
    labels = [str(row["batch"]) for row in results["batches"]]
    series = {
        name: [row[name]["step_us"] if name in row else None for row in results["batches"]]
        for name in ("overlap", "graphs", "eager", "transformers")
    }
    return [Chart("A decode step of GPT-2 124M, by the number of requests", "µs", labels, series)]


if __name__ == "__main__":
    sys.exit(main("gpu_engine", __doc__.partition("\n")[0], run, charts))
