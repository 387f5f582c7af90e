"""What does it cost to bring a prefix back from a tier below the pool? `python -m benchmarks.offload`

    anew         a prompt that nobody has seen: the time until its first token
    in the pool  the same prompt right away, with all blocks where they are: what the step of its last tokens takes
    from memory  the same prompt, once its blocks were evicted: they come back from the memory of the host
    from a file  the same from a file, on a CPU

on a CPU with GPT-2's shape (124M parameters, float32), and on a GPU, if there is one, with Llama-3.1-8B's in bfloat16,
where four heads of q share one of K and V, and with Llama-2-7B's, where none do; all with random weights. The goal: a
third of computing it anew. Texts are compared, too.

On a GPU also: the steps of texts that run meanwhile, while others come and evict blocks, with a tier that saves them
and with one that saves nothing; and while a long text comes back.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.charts import Chart
from benchmarks.engine import GPT2, make_checkpoint
from benchmarks.measure import OtherPrograms, console, grid, has_gpu, main
from minipage import LLM, SamplingParams
from minipage.simulate.configs import CONFIGS

BLOCK_SIZE = 16
ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
GOAL = 1 / 3


def prompt(llm: LLM, number: int, length: int) -> list[int]:
    generator = np.random.default_rng(number)
    return generator.integers(0, llm.config.vocab_size, length).tolist()  # [length]


def first_token(llm: LLM, token_ids: list[int], clock: Callable[[], float]) -> tuple[float, int]:
    """Seconds until it is there, and which it is."""
    start = clock()
    [output] = llm.generate([token_ids], ONE)
    return clock() - start, output.outputs[0].token_ids[0]


def anew_and_back(llm: LLM, length: int, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of prompts that are computed, evicted by others, and come back."""
    prompts = [prompt(llm, number, length) for number in range(rounds + 1)]
    anew = [first_token(llm, each, clock) for each in prompts]
    fillers = [prompt(llm, 1000 + i, length) for i in range(-(-llm.block_pool.num_blocks * BLOCK_SIZE // length))]
    back, hot, hits = [], [], []
    for each in prompts:
        llm.generate(fillers, ONE)
        before = llm.stats()["vllm:external_prefix_cache_hits"]
        back.append(first_token(llm, each, clock))
        hot.append(first_token(llm, each, clock))
        hits.append(llm.stats()["vllm:external_prefix_cache_hits"] - before)
    console.print(f"{length:,} tokens, of which came back: {hits}", style="dim")
    assert [token for _, token in back] == [token for _, token in hot], "another text"
    same = sum(one == other for (_, one), (_, other) in zip(anew, back))  # in bfloat16, other sizes round otherwise
    console.print(f"{same} of {len(anew)} first tokens are those of a prompt computed anew", style="dim")
    seconds = [[time for time, _ in turn][1:] for turn in (anew, back, hot)]  # in the first, kernels are compiled
    medians = [statistics.median(each) for each in seconds]
    of_prefix = (medians[1] - medians[2]) / (medians[0] - medians[2])
    names = dict(zip(("anew", "back", "hot"), seconds))
    return names | {"hits": hits, "share": medians[1] / medians[0], "share_of_prefix": of_prefix}


def on_a_cpu(quick: bool) -> list[dict[str, Any]]:
    length, rounds = (256, 2) if quick else (768, 5)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), GPT2)
        for path in None, Path(folder) / "kv":
            llm = LLM(
                folder, num_blocks=4 * length // BLOCK_SIZE, block_size=BLOCK_SIZE, enable_prefix_caching=True,
                kv_offloading_size=3.0, kv_offloading_path=path,
            )  # fmt: skip
            row = anew_and_back(llm, length, rounds, process_time)
            rows.append({"name": "CPU, file" if path else "CPU, memory", "tokens": length} | row)
    return rows


def on_a_gpu(
    quick: bool, models: Sequence[str] = ("Llama-2-7B", "Llama-3.1-8B")
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lengths, rounds = ((1000,), 2) if quick else ((1000, 2000, 3500), 4)
    rows, steps = [], {}
    for model in models[-1:] if quick else models:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(CONFIGS[model]))
            llm = LLM(
                folder, device="cuda", dtype="bfloat16", load_format="dummy", num_blocks=512, block_size=BLOCK_SIZE,
                max_model_len=4096, max_num_seqs=16, max_num_batched_tokens=4096, enable_prefix_caching=True,
                kv_offloading_size=14 if model == "Llama-2-7B" else 4,
            )  # fmt: skip
        for length in lengths:
            llm.reset_prefix_cache()
            rows.append({"name": model, "tokens": length} | anew_and_back(llm, length, rounds, perf_counter))
        steps = steps_of_others(llm, 60 if quick else 300)
        del llm
    return rows, steps


def steps_of_others(llm: LLM, num_steps: int) -> dict[str, Any]:
    """Seconds of the steps that only decode, of four texts, while others come, evict blocks, and come back."""
    store: Any = llm.offloading.store  # what a step does to the tier
    save = store.save
    times: dict[str, list[float]] = {"nothing is saved": [], "blocks are saved": [], "a text comes back": []}
    for number, kind in enumerate([*times] * 2):
        store.save = (lambda slot, block_hash, block: False) if kind == "nothing is saved" else save
        if kind == "nothing is saved":
            llm.reset_prefix_cache()
        running = SamplingParams(temperature=0, max_tokens=num_steps, ignore_eos=True)
        ids = [llm.add_request(prompt(llm, 5000 + i, 64), running) for i in range(4)]
        old = [prompt(llm, 7000 + 100 * number + i, 1024) for i in range(8)]
        for step in range(num_steps - 1):
            if step % 10 == 5:
                i = step // 10 % 8 if kind == "a text comes back" else step
                llm.add_request(old[i] if kind == "a text comes back" else prompt(llm, 10**6 * number + i, 1024), ONE)
            computed = llm.scheduler.num_queried_tokens
            start = perf_counter()
            llm.step()
            seconds = perf_counter() - start
            if llm.scheduler.num_queried_tokens == computed and step > 20:  # nobody was admitted: all of it is decode
                times[kind].append(seconds)
        for request_id in ids:
            llm.abort(request_id)
        while llm.has_unfinished_requests():
            llm.step()
    store.save = save
    return times


def run(quick: bool) -> dict[str, Any]:
    others = OtherPrograms()
    rows, steps = on_a_cpu(quick), {}
    if has_gpu():
        more, steps = on_a_gpu(quick)
        rows += more
    table = grid(
        "Until the first token (medians)",
        ["", "tokens", "anew, ms", "back, ms", "in the pool, ms", "share", "of the prefix alone"],
    )
    for row in rows:
        times = (f"{1e3 * statistics.median(row[name]):,.1f}" for name in ("anew", "back", "hot"))
        shares = (f"{row[name]:.2f}" for name in ("share", "share_of_prefix"))
        table.add_row(row["name"], f"{row['tokens']:,}", *times, *shares)
    console.print(table)
    if steps:
        table = grid("Steps of four texts that run meanwhile", ["", "steps", "median, ms", "95th percentile, ms"])
        for name, seconds in steps.items():
            tenths = statistics.quantiles(seconds, n=20)
            table.add_row(name, str(len(seconds)), f"{1e3 * statistics.median(seconds):.2f}", f"{1e3 * tenths[-1]:.2f}")
        console.print(table)
    worst = max(rows, key=lambda row: row["share"])
    met = "met" if worst["share"] < GOAL else "not met"
    console.print(
        f"The dearest comes back for {worst['share']:.2f} of computing it anew. The goal of a third is {met}."
    )
    console.print(f"Meanwhile other programs took {others} of the processors.\n")
    return {"prompts": rows, "steps": steps}


def charts(results: dict[str, Any]) -> list[Chart]:
    rows = results["prompts"]
    labels = [f"{row['name']}, {row['tokens']} tokens" for row in rows]
    series = {name: [1e3 * statistics.median(row[name]) for row in rows] for name in ("anew", "back")}
    return [Chart("Until the first token", "ms", labels, series, logarithmic=True)]


if __name__ == "__main__":
    sys.exit(main("offload", "What it costs to bring a prefix back.", run, charts))
