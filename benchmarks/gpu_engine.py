"""How fast does the engine decode on a GPU, beside transformers' continuous batching? `python -m benchmarks.gpu_engine`

GPT-2 with 124 million random weights in bfloat16, batches of 1 to 256 requests, each with a prompt of 128 tokens, that
generate 128 more, greedily. Everybody gets the same requests, one engine after the other, in one process.

    graphs         LLM(device="cuda"): a decode step is a CUDA graph
    eager          the same with enforce_eager=True: every kernel launched by the host
    transformers   generate_batch, with its own CUDA graphs where it decides to use them

A step is what a user waits for between two tokens: the median, over the run, of the time between two tokens of a
request. The first token is timed from when the requests were handed over, together, to when a request has got it.

The goal is a step in at most a fifth of transformers' time, at every batch size.
"""

from __future__ import annotations

import sys
import tempfile
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, GPT2Config, GPT2LMHeadModel

from benchmarks.charts import Chart
from benchmarks.measure import console, grid, main
from minipage import LLM, SamplingParams
from minipage.errors import ConfigurationError

BATCHES = 1, 16, 64, 256
PROMPT_LEN, NUM_TOKENS = 128, 128
GOAL = 5.0
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, top_p=0.95, seed=1, max_tokens=NUM_TOKENS, ignore_eos=True)
PHASES = ("schedule", "copy", "forward", "sample", "update")


def run(quick: bool) -> dict[str, Any]:
    if not torch.cuda.is_available():
        raise ConfigurationError("this benchmark needs an NVIDIA GPU; `python -m minipage info` says what is there.")
    batches = BATCHES[1:3] if quick else BATCHES
    console.print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    with tempfile.TemporaryDirectory() as folder:
        theirs = GPT2LMHeadModel(GPT2Config()).to(torch.bfloat16).eval()
        theirs.save_pretrained(folder)
        options = {"device": "cuda", "dtype": "bfloat16", "num_blocks": max(batches) * 17}
        engines = {"graphs": LLM(folder, **options), "eager": LLM(folder, enforce_eager=True, **options)}
    theirs = theirs.to("cuda")
    results = []
    for batch in batches:
        rng = np.random.default_rng(batch)
        prompts = rng.integers(0, 50_000, (batch, PROMPT_LEN)).tolist()
        row: dict[str, Any] = {"batch": batch}
        for name, llm in engines.items():
            serve(llm, prompts, GREEDY)  # compiles, and captures the graph of this size
            row[name] = serve(llm, prompts, GREEDY)
        row["drawn"] = serve(engines["graphs"], prompts, DRAWN)
        row["graph_us"] = replay_time(engines["graphs"], batch)
        row["phases_us"] = phases(engines["graphs"], prompts)
        row["transformers"] = best_of_transformers(theirs, prompts)
        texts = [row[name].pop("texts") for name in ("graphs", "eager", "transformers")]
        row["drawn"].pop("texts")
        row["eager says the same"] = same(texts[0], texts[1])
        row["transformers says the same"] = same(texts[0], texts[2])
        row["ratio"] = row["transformers"]["step_us"] / row["graphs"]["step_us"]
        results.append(row)
        show(row)
    worst = min(row["ratio"] for row in results)
    console.print(f"a step takes at most 1/{worst:.1f} of transformers' time (goal: 1/{GOAL:g})")
    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "batches": results}


def serve(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> dict[str, Any]:
    """Generate for all prompts at once; microseconds, and the texts."""
    start = perf_counter()
    ids = [llm.add_request(prompt, params) for prompt in prompts]
    times: dict[str, list[float]] = {request_id: [] for request_id in ids}
    texts = {}
    while llm.has_unfinished_requests():
        outputs = llm.step()
        now = perf_counter()
        for output in outputs:
            times[output.request_id].append(now)
            texts[output.request_id] = output.outputs[0].token_ids
    return summary(start, perf_counter(), list(times.values())) | {"texts": [texts[i] for i in ids]}


def summary(start: float, stop: float, times: list[list[float]]) -> dict[str, Any]:
    """times: of each request, when it got each of its tokens."""
    num_tokens = sum(map(len, times))
    return {
        "step_us": 1e6 * median(float(gap) for of_request in times for gap in np.diff(of_request)),
        "first_token_us": 1e6 * median(of_request[0] - start for of_request in times),
        "tokens_per_second": num_tokens / (stop - start),
    }


def best_of_transformers(model: GPT2LMHeadModel, prompts: list[list[int]]) -> dict[str, Any]:
    """The faster of: what it decides by itself, and with graphs and overlapped steps asked for."""
    model.set_attn_implementation("paged|sdpa")
    generation = GenerationConfig(max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    runs = []
    for config in (
        ContinuousBatchingConfig(max_requests_per_batch=max(BATCHES)),
        ContinuousBatchingConfig(max_requests_per_batch=max(BATCHES), use_cuda_graph=True, use_async_batching=True),
    ):
        try:
            outputs = model.generate_batch(
                prompts, generation, continuous_batching_config=config, record_timestamps=True
            ).values()
            times = [output.timestamps for output in outputs]
            start = min(output.created_time for output in outputs)
            texts = [output.generated_tokens for output in outputs]
            settings = {"graphs": config.use_cuda_graph, "async": config.use_async_batching}
            runs.append(summary(start, max(t[-1] for t in times), times) | {"texts": texts, "settings": settings})
        except Exception as error:  # one of its ways may not exist for this model on this GPU
            console.print(f"transformers with {config.use_cuda_graph=}: {type(error).__name__}: {error}")
    return min(runs, key=lambda run: run["step_us"])


def replay_time(llm: LLM, batch: int) -> float:
    """Microseconds that one replay of a batch's graph keeps the GPU busy, by the GPU's own clock."""
    size = min(size for size in llm.runner._graphs if size >= batch)
    graph, _ = llm.runner._graphs[size]
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(20):
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        times.append(1e3 * start.elapsed_time(stop))
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
    serve(llm, prompts, GREEDY)
    for name in PHASES:
        delattr(llm, name)
    return {name: median(times) for name, times in spent.items()}


def same(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of tokens that are equal."""
    return float(np.mean([a == b for one, other in zip(ours, theirs) for a, b in zip(one, other)]))


def show(row: dict[str, Any]) -> None:
    table = grid(f"{row['batch']} requests", ["", "step, µs", "first token, ms", "tokens/s"])
    for name in ("graphs", "eager", "drawn", "transformers"):
        numbers = row[name]
        table.add_row(
            {"drawn": "graphs, top_p"}.get(name, name),
            f"{numbers['step_us']:,.0f}",
            f"{numbers['first_token_us'] / 1e3:.1f}",
            f"{numbers['tokens_per_second']:,.0f}",
        )
    console.print(table)
    console.print(
        f"ratio {row['ratio']:.1f}; a replay keeps the GPU busy for {row['graph_us']:,.0f} µs; the host: "
        + ", ".join(f"{name} {time:,.0f}" for name, time in row["phases_us"].items())
        + f" µs; eager says the same {row['eager says the same']:.0%}, transformers "
        f"{row['transformers says the same']:.0%}; {row['transformers']['settings']}"
    )


def charts(results: dict[str, Any]) -> list[Chart]:
    labels = [str(row["batch"]) for row in results["batches"]]
    series = {
        name: [row[name]["step_us"] for row in results["batches"]] for name in ("graphs", "eager", "transformers")
    }
    return [Chart("A decode step of GPT-2 124M, by the number of requests", "µs", labels, series)]


if __name__ == "__main__":
    sys.exit(main("gpu_engine", __doc__.partition("\n")[0], run, charts))
