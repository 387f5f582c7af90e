"""How fast does a whole engine serve, against what people use? `python -m benchmarks.engine`

A GPT-2 of 124M parameters (random weights, made on the spot) serves a mix of requests like ShareGPT's, on two threads:

    minipage               LLM.step(); NumPy arrays in float32, PyTorch's in bfloat16
    continuous batching    transformers' paged engine, that of `generate_batch`
    static batches         transformers' `generate`: the batch is padded, and ends with its longest text

The mix is that of `minipage.simulate` (ShareGPT's mean lengths as the PagedAttention paper gives them) at half the
lengths, as GPT-2's context of 1,024 tokens is half of the 2,048 there: prompts of 79 tokens on average (log-normal),
outputs of 167 (gamma). How long each text gets is fixed, whatever the model says. All requests are there at the start,
three times as many as are served at a time: so the batch is full for most of the run, and then runs empty.
A round is the same requests for everybody, one contender after the other; the next round has others. Static batches,
which take longer than all others together, serve in the first round only. `contenders.py` has the settings. Every
contender first serves a few tokens that do not count, and the median round is what is shown.

    time to first token      from the start until a request's first token, so it includes waiting for a place
    time between tokens      of one request; the median and the 99th of a hundred
    KV waste                 share of the KV slots held for a request that hold nothing it still needs
    peak memory              of the contender's process, its weights included
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from benchmarks.charts import Chart
from benchmarks.contenders import (
    ContinuousBatching,
    Limits,
    Minipage,
    Process,
    Prompted,
    Served,
    StaticBatches,
)
from benchmarks.measure import OtherPrograms, console, grid, main
from minipage.model import gpt2
from minipage.model.checkpoint import stored_shapes
from minipage.simulate import draw_requests

GPT2 = gpt2.GPT2(vocab_size=50_257, n_positions=1024, n_embd=768, n_layer=12, n_head=12)
NUM_THREADS = 2
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
SHORTER = 2  # times shorter than ShareGPT's texts
CONTENDERS = {
    ("minipage", "float32"): Minipage,
    ("continuous batching", "float32"): ContinuousBatching,
    ("static batches", "float32"): StaticBatches,
    ("minipage", "bfloat16"): Minipage,
    ("continuous batching", "bfloat16"): ContinuousBatching,
}
GOALS = {  # (contender, dtype): minipage's tokens/s over its tokens/s
    ("continuous batching", "float32"): 4.0,
    ("static batches", "float32"): 8.0,
    ("continuous batching", "bfloat16"): 2.0,
}


class Size(NamedTuple):
    num_requests: int
    max_num_seqs: int
    num_rounds: int
    shorter: int  # times shorter than ShareGPT's texts


FULL = Size(num_requests=96, max_num_seqs=32, num_rounds=3, shorter=SHORTER)  # half an hour, half of it static batches
QUICK = Size(num_requests=16, max_num_seqs=16, num_rounds=1, shorter=16)


class Figures(NamedTuple):
    """What one contender did in one round."""

    tokens_per_s: float
    first_token_median: float  # seconds
    first_token_p99: float
    between_median: float  # seconds
    between_p99: float
    kv_waste: float
    peak_memory: int  # bytes


def make_checkpoint(folder: Path, model: gpt2.GPT2, seed: int = 0) -> None:
    """A GPT-2 with random weights, in the files that Hugging Face's libraries read and write."""
    from safetensors.numpy import save_file

    generator = np.random.default_rng(seed)
    weights = {}
    for name, shape in stored_shapes(model).items():
        if "ln_" in name:
            weights[name] = np.full(shape, float(name.endswith("weight")), np.float32)  # [C]
        else:
            weights[name] = generator.standard_normal(shape, np.float32) * np.float32(0.02)  # as GPT-2 begins
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {name: getattr(model, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
    settings = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **sizes, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(settings | {"eos_token_id": None, "bos_token_id": None}))


def draw_mix(num_requests: int, shorter: int, seed: int) -> list[Prompted]:
    """Random tokens in the lengths of the mix."""
    generator = np.random.default_rng(seed)
    return [
        Prompted(
            generator.integers(0, GPT2.vocab_size, max(1, request.num_prompt_tokens // shorter)).tolist(),
            max(1, request.num_output_tokens // shorter),
        )
        for request in islice(draw_requests(seed), num_requests)
    ]


def summarize(served: Served) -> Figures:
    first = [times[0] for times in served.token_times]  # [num_requests]
    between = np.concatenate([np.diff(times) for times in served.token_times])  # [num_tokens - num_requests]
    return Figures(
        served.num_tokens / served.seconds,
        *np.quantile(first, (0.5, 0.99)).tolist(),
        *np.quantile(between, (0.5, 0.99)).tolist(),
        served.kv_waste,
        served.peak_memory,
    )


def run(quick: bool) -> dict[str, Any]:
    size = QUICK if quick else FULL
    limits = Limits(size.max_num_seqs, kv_tokens=max(4096, size.max_num_seqs * 512), num_threads=NUM_THREADS)
    mixes = [draw_mix(size.num_requests, size.shorter, seed) for seed in range(size.num_rounds)]
    console.print(
        f"{size.num_requests} requests a round, at most {size.max_num_seqs} at a time, {NUM_THREADS} threads; "
        f"{np.mean([len(r.token_ids) for mix in mixes for r in mix]):.0f} tokens in and "
        f"{np.mean([r.num_output_tokens for mix in mixes for r in mix]):.0f} out on average."
    )
    others = OtherPrograms()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), GPT2)
        processes = {
            (name, dtype): Process(make, Path(folder), dtype, limits) for (name, dtype), make in CONTENDERS.items()
        }
        rounds: list[dict[tuple[str, str], Served]] = [{} for _ in mixes]
        for process in processes.values():
            process.serve([Prompted(r.token_ids[:40], 4) for r in mixes[0][:4]])
        turns = [(i, who) for i in range(size.num_rounds) for who in processes if i == 0 or who[0] != "static batches"]
        for i, who in track(turns, "Serving", console=console, transient=True, disable=not console.is_terminal):
            rounds[i][who] = check(processes[who].serve(mixes[i]), mixes[i])
        for process in processes.values():
            process.close()
    figures = {who: [summarize(served[who]) for served in rounds if who in served] for who in processes}
    show(figures, rounds)
    if quick:
        console.print("The goals are for the full run: short texts leave padding little to lose.")
    console.print(f"Meanwhile other programs took {others} of the processors.\n")
    return {
        "size": size._asdict(),
        "rounds": [
            {"contender": name, "dtype": dtype, "round": i, **one._asdict()}
            for (name, dtype), each in figures.items()
            for i, one in enumerate(each)
        ],
        "ratios": [
            {"contender": name, "dtype": dtype, "ratio": ratio(figures, (name, dtype)), "goal": goal}
            for (name, dtype), goal in GOALS.items()
        ],
    }


def check(served: Served, mix: Sequence[Prompted]) -> Served:
    """Everybody must have got all that was asked for."""
    wanted = [request.num_output_tokens for request in mix]
    if list(map(len, served.token_ids)) != wanted or list(map(len, served.token_times)) != wanted:
        raise OSError("a contender did not generate as many tokens as it was asked for.")
    return served


def ratio(figures: dict[tuple[str, str], list[Figures]], peer: tuple[str, str]) -> float:
    """How many times the peer's tokens/s minipage generates: the median of the rounds."""
    ours = figures["minipage", peer[1]]
    return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, figures[peer]))


def show(figures: dict[tuple[str, str], list[Figures]], rounds: list[dict[tuple[str, str], Served]]) -> None:
    headings = "", "tokens/s", "first\ntoken, s", "between\ntokens, ms", "KV\nwaste", "peak\nGiB"
    table = grid(f"Median of {len(rounds)} rounds (± half the range; median / 99th of a hundred)", headings)
    for (name, dtype), each in figures.items():
        middle = Figures(*(statistics.median(column) for column in zip(*each)))
        speeds = [one.tokens_per_s for one in each]
        table.add_row(
            f"{name.split()[0]} {SHORT[dtype]}",
            f"{middle.tokens_per_s:.1f} ±{(max(speeds) - min(speeds)) / 2:.1f}",
            f"{middle.first_token_median:.2f} / {middle.first_token_p99:.2f}",
            f"{1000 * middle.between_median:.0f} / {1000 * middle.between_p99:.0f}",
            f"{100 * middle.kv_waste:.1f} %",
            f"{middle.peak_memory / 2**30:.2f}",
        )
    console.print(table)
    for peer, goal in GOALS.items():
        name, dtype = peer
        ours, theirs = (
            statistics.median(one.between_median for one in figures[who, dtype]) for who in ("minipage", name)
        )
        times = ratio(figures, peer)
        console.print(
            f"{dtype}: {times:.2f} times the tokens/s of {name} (goal: {goal:.0f}, "
            f"{'met' if times >= goal else 'not met'}); time between tokens {ours / theirs:.2f} of theirs."
        )
    for dtype in ("float32", "bfloat16"):
        same = [
            ours == theirs
            for served in rounds
            for ours, theirs in zip(
                served["minipage", dtype].token_ids, served["continuous batching", dtype].token_ids, strict=True
            )
        ]
        console.print(f"{dtype}: {100 * np.mean(same):.0f} % of minipage's texts are those of continuous batching.")


def charts(results: dict[str, Any]) -> list[Chart]:
    rows = results["rounds"]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))

    def middle(name: str, dtype: str, figure: str, scale: float = 1.0) -> float | None:
        values = [row[figure] * scale for row in rows if (row["contender"], row["dtype"]) == (name, dtype)]
        return statistics.median(values) if values else None

    def chart(title: str, unit: str, figure: str, scale: float = 1.0) -> Chart:
        return Chart(title, unit, dtypes, {n: [middle(n, dtype, figure, scale) for dtype in dtypes] for n in names})

    return [
        chart("Output tokens a second, GPT-2 124M on 2 threads", "tokens/s", "tokens_per_s"),
        chart("Time between tokens (median)", "ms", "between_median", 1000),
        chart("KV slots held for nothing", "%", "kv_waste", 100),
    ]


if __name__ == "__main__":
    sys.exit(main("engine", "How fast a whole engine serves, beside transformers' two.", run, charts))
