"""A small Llama on a CPU, beside transformers' continuous batching: `python -m benchmarks.llama`.

The model has the shape of SmolLM2-135M (30 layers, width 576, 9 heads over 3 of K and V, vocabulary 49,152) and random
weights. It serves one request of 64 tokens in and 32 out, and 32 requests of 64 in and 48 out at once, greedily, in
float32 and in bfloat16. Engines serve in turn, each in a process of its own, on two threads; the goal is 3 times
transformers' tokens/s at 32 requests.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.charts import Chart
from benchmarks.contenders import ContinuousBatching, Limits, Minipage, Process, Prompted
from benchmarks.measure import OtherPrograms, console, grid, main

NUM_THREADS = 2
VOCABULARY = 49_152
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
LOADS = {"1 request": (1, 64, 32), "32 requests": (32, 64, 48)}  # how many, tokens in, tokens out
CONTENDERS = {"minipage": Minipage, "continuous batching": ContinuousBatching}
DTYPES = "float32", "bfloat16"
GOAL = 3


def make_checkpoint(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)


def run(quick: bool) -> dict[str, Any]:
    rounds = 1 if quick else 3
    generator = np.random.default_rng(0)
    loads = {
        name: [Prompted(generator.integers(0, VOCABULARY, tokens_in).tolist(), out) for _ in range(number)]
        for name, (number, tokens_in, out) in LOADS.items()
    }
    limits = Limits(max_num_seqs=32, kv_tokens=32 * 128, num_threads=NUM_THREADS)
    others = OtherPrograms()
    speeds: dict[tuple[str, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder))
        processes = {
            (name, dtype): Process(make, Path(folder), dtype, limits)
            for dtype in DTYPES
            for name, make in CONTENDERS.items()
        }
        for process in processes.values():
            process.serve([Prompted(r.token_ids, 4) for r in loads["32 requests"]])
        turns = [(load, who) for _ in range(rounds) for load in loads for who in processes]
        for load, (name, dtype) in track(
            turns, "Serving", console=console, transient=True, disable=not console.is_terminal
        ):
            served = processes[name, dtype].serve(loads[load])
            speeds.setdefault((load, name, dtype), []).append(served.num_tokens / served.seconds)
        for process in processes.values():
            process.close()
    table = grid(f"Tokens/s, median of {rounds} rounds on {NUM_THREADS} threads", ("", "", *CONTENDERS, "times"))
    ratios = []
    for load in loads:
        for dtype in DTYPES:
            ours, theirs = (speeds[load, name, dtype] for name in CONTENDERS)
            times = statistics.median(a / b for a, b in zip(ours, theirs))
            ratios.append(
                {"load": load, "dtype": dtype, "ratio": times, "goal": GOAL if load == "32 requests" else None}
            )
            table.add_row(load, dtype, *(f"{statistics.median(each):.1f}" for each in (ours, theirs)), f"{times:.2f}")
    console.print(table)
    console.print(f"Goal: {GOAL} times at 32 requests. Meanwhile other programs took {others} of the processors.\n")
    return {
        "speeds": [{"load": a, "contender": b, "dtype": c, "tokens_per_s": each} for (a, b, c), each in speeds.items()],
        "ratios": ratios,
    }


def charts(results: dict[str, Any]) -> list[Chart]:
    rows = results["speeds"]
    return [
        Chart(
            f"Output tokens a second, SmolLM2-135M's shape, {load}", "tokens/s", list(DTYPES),
            {
                name: [
                    statistics.median(row["tokens_per_s"])
                    for dtype in DTYPES
                    for row in rows
                    if (row["load"], row["contender"], row["dtype"]) == (load, name, dtype)
                ]
                for name in CONTENDERS
            },
        )
        for load in LOADS
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main("llama", "How fast a small Llama is served on a CPU, beside transformers.", run, charts))
