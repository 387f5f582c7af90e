"""The headline, rerun: how many times the tokens of transformers?

    python -m benchmarks.headline [llama|opt|rates|gpt2]

512 requests with lengths like ShareGPT's, all there at the beginning, for a model of random weights (`llama`: the shape
of Llama-2-7B, the default on a GPU; `opt`: OPT-13B's; `gpt2`: GPT-2 with 124M parameters, the default on a CPU, where
there are 32 requests of half the length). Each engine serves them in a process of its own:

    static       transformers' `generate`, in the largest batches that do not run out of memory; their time is worked
                 out from stretches of steps, and compared with that of one batch (benchmarks/static_batches.py)
    continuous   transformers' `generate_batch`, with its CUDA graphs and overlapped steps
    reserving    minipage with no more requests at a time than fit if each reserves memory for the longest text
    minipage     as it is

Before that, each generates for a small model, and all have to say the same. `rates` asks minipage, with Llama-2-7B's
shape on a GPU, with and without reserving, at several rates, by Poisson's law, for its normalised latency (seconds a
token, waiting included): the axes of the paper's Figure 12. A run takes at most seven minutes and a
half. Each part is printed as soon as it is done, whatever becomes of the others; what does not fit is left out, and
that is said.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from benchmarks.charts import Chart
from benchmarks.headline_peers import Task, continuous, in_process, minipage, minipage_at_rates, with_texts
from benchmarks.measure import console, grid, main
from benchmarks.static_batches import static
from minipage.errors import ConfigurationError
from minipage.simulate.configs import CONFIGS
from minipage.simulate.workload import SHAREGPT

ENGINES = "minipage", "static", "continuous", "reserving"
GOALS = {"static": 24.0, "continuous": 6.0}
BUDGET = 450.0  # seconds
PREPARING = 80.0  # of these, until an engine has loaded its model and compiled
TEXTS = "texts of a small model"
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
FULL = {"use_cuda_graph": True, "use_async_batching": True}
PLAIN = {"use_cuda_graph": False, "use_async_batching": False}
SMALL = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "initializer_range": 0.2, "tie_word_embeddings": False, **NO_TOKENS,
}  # fmt: skip  # with so large weights no two tokens are nearly equally likely


class Plan(NamedTuple):
    """What is served, and for how long each engine may take."""

    model: str  # in minipage/simulate/configs.py
    num_requests: int
    scale: float  # of ShareGPT's lengths
    longest: int  # of a prompt, and of an answer
    max_model_len: int
    max_num_seqs: int
    limits: dict[str, float]  # seconds
    rates: tuple[float, ...] = ()  # requests a second


LIMITS = {"static": 40.0, "continuous": 150.0, "reserving": 30.0, "minipage": 45.0}
CPU_LIMITS = {"static": 40.0, "continuous": 60.0, "reserving": 40.0, "minipage": 40.0}
PLANS = {
    "llama": Plan("Llama-2-7B", 512, 1.0, 1024, 2048, 512, LIMITS),
    "rates": Plan("Llama-2-7B", 512, 1.0, 1024, 2048, 256, {}, (2.0, 6.0, 10.0, 14.0, 18.0)),
    "opt": Plan("OPT-13B", 512, 1.0, 1024, 2048, 512, LIMITS),
    "gpt2": Plan("GPT-2", 32, 0.5, 480, 1024, 32, CPU_LIMITS),
}


class Deadline:
    def __init__(self, seconds: float) -> None:
        self.end = perf_counter() + seconds

    def left(self, wanted: float) -> float:
        return min(wanted, self.end - perf_counter())


def requests(plan: Plan, vocab_size: int) -> list[tuple[list[int], int]]:
    """Token ids, and how many tokens are wanted."""
    rng = np.random.default_rng(0)
    drawn = SHAREGPT.draw(0)
    made = []
    for _ in range(plan.num_requests):
        num_prompt, num_output = (int(np.clip(round(plan.scale * n), 4, plan.longest)) for n in next(drawn))
        made.append((rng.integers(0, vocab_size, num_prompt).tolist(), num_output))
    return made


def run(quick: bool) -> dict[str, Any]:
    import torch

    has_gpu = torch.cuda.is_available()
    name = CHOICE or ("llama" if has_gpu else "gpt2")
    if name != "gpt2" and not has_gpu:
        raise ConfigurationError("this shape needs an NVIDIA GPU; on a CPU use `python -m benchmarks.headline gpt2`.")
    plan, deadline = PLANS[name], Deadline(BUDGET)
    if quick:
        plan = plan._replace(num_requests=min(plan.num_requests, 64) // 4, scale=plan.scale / 4, rates=plan.rates[:1])
    device, dtype = ("cuda", "bfloat16") if has_gpu else ("cpu", "float32")
    console.print(f"{torch.cuda.get_device_name() if has_gpu else 'CPU'}, PyTorch {torch.__version__}, {plan.model}")
    settings = FULL if has_gpu else PLAIN
    with tempfile.TemporaryDirectory() as folder:
        config = CONFIGS[plan.model] | NO_TOKENS
        (Path(folder) / "config.json").write_text(json.dumps(config))
        asked = requests(plan, config["vocab_size"])
        task = Task(folder, device, dtype, plan.max_num_seqs, plan.max_model_len, asked, 0.0)
        results: dict[str, Any] = {"model": plan.model, "device": device, TEXTS: {}, "engines": {}}
        if plan.rates:
            results["rates"] = at_rates(task, plan, deadline)
        else:
            small = small_task(folder, device)
            for who in ENGINES:
                add_engine(results, who, task._replace(limit=plan.limits[who]), small, settings, deadline)
    results["ratios"] = show(results)
    return results


def add_engine(
    results: dict[str, Any], who: str, task: Task, small: Task, settings: dict[str, bool], deadline: Deadline
) -> None:
    """Measure one of them, and print what came of it."""
    result: dict[str, Any] = {}
    for memory in (task.memory, 0.5):  # of transformers' continuous batching, which may have no room for its graphs
        patience = deadline.left(task.limit + 120)
        if patience < 40:
            result = result or {"error": "there was no time left"}
            break
        limit = min(task.limit, max(patience / 3, patience - PREPARING))  # what it has served by then counts
        result = ask(who, task._replace(memory=memory, limit=limit), small, patience, settings)
        error = result.get("error", "")
        if who != "continuous" or not error or error.startswith("stopped"):
            break
    texts = results[TEXTS][who] = result.pop(TEXTS, result.get("error"))
    results["engines"][who] = result
    ours = results["engines"]["minipage"].get("tokens_per_second", 0.0)
    times = f", minipage is {ours / result['tokens_per_second']:.2f} times as fast" if "error" not in result else ""
    console.print(f"{who}: {result}{times}", style="dim", markup=False)
    if who != "minipage":
        told = "minipage has the same" if texts == results[TEXTS]["minipage"] else "OTHERS than minipage has"
        console.print(f"  texts of a small model: {told if isinstance(texts, list) else 'none'}")


def ask(who: str, task: Task, small: Task, patience: float, settings: dict[str, bool]) -> dict[str, Any]:
    if who == "static":
        return in_process(with_texts, task, patience, small, static)
    if who == "continuous":
        return in_process(with_texts, task, patience, small, continuous, settings)
    return in_process(with_texts, task, patience, small, minipage, who == "reserving")


def at_rates(task: Task, plan: Plan, deadline: Deadline) -> dict[str, Any]:
    task = task._replace(limit=8.0)
    return {
        who: in_process(minipage_at_rates, task, max(1.0, deadline.left(190)), who == "reserving", list(plan.rates))
        for who in ("minipage", "reserving")
    }


def small_task(folder: str, device: str) -> Task:
    """A few requests to a small model in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = Path(folder) / "small"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SMALL.items() if k != "model_type"})).save_pretrained(small)
    rng = np.random.default_rng(3)
    asked = [(rng.integers(0, 512, n).tolist(), 24) for n in (5, 17, 40, 64)]
    return Task(str(small), device, "float32", 4, 512, asked, 60.0, weights=True)


def show(results: dict[str, Any]) -> dict[str, float]:
    ours = results["engines"].get("minipage", {}).get("tokens_per_second", 0.0)
    table = grid(f"{results['model']}, tokens/s", ("", "tokens/s", "times", "goal", "finished"))
    ratios, notes = {}, []
    for who, result in results["engines"].items():
        speed = result.get("tokens_per_second")
        if speed:
            ratios[who] = ours / speed
        goal = GOALS.get(who) if results["device"] == "cuda" else None
        table.add_row(
            who, f"{speed:,.0f}" if speed else "-", f"{ratios[who]:.2f}" if who in ratios else "-",
            f"{goal:g}" if goal else "", "worked out" if "whole_steps" in result else f"{result.get('finished', 0)}",
        )  # fmt: skip
        if "error" in result:
            notes.append(f"{who}: {result['error']}.")
        elif "batch_size" in result:
            notes += about_static(who, result)
        elif "max_num_seqs" in result:
            notes.append(f"{who}: at most {result['max_num_seqs']} at a time, {result['num_blocks']:,} blocks.")
    if ratios:
        console.print(table)
    console.print(*notes, sep="\n", markup=False)
    for who, each in results.get("rates", {}).items():
        if "error" in each:
            console.print(f"{who}: {each['error']}", markup=False)
        for point in each.get("points", []):
            console.print(f"{who} at {point['rate']:g} requests/s: {point['normalized_latency']:.4f} s a token")
    return ratios


def about_static(who: str, result: dict[str, Any]) -> list[str]:
    """How its time is known, which nobody waits for."""
    run, took, says = result["whole_steps"], result["whole_seconds"], result["whole_worked_out"]
    return [
        f"{who}: batches of {result['batch_size']}. WORKED OUT: of {result['steps']:,} steps {result['steps_run']:,} "
        "were run, in stretches from the first to the last of every batch; the others' times lie between theirs.",
        f"  Check: {run:,} of {result['whole_of']:,} steps of the first batch, run one after the other, took "
        f"{took:.1f} s; by the stretches it would be {says:.1f} ({100 * (says / took - 1):+.1f} %).",
    ]


def charts(results: dict[str, Any]) -> list[Chart]:
    pictures = []
    speeds = {who: result.get("tokens_per_second") for who, result in results["engines"].items()}
    if speeds:
        pictures.append(Chart(results["model"], "tokens/s", list(speeds), {"tokens/s": list(speeds.values())}))
    series = {
        who: [point["normalized_latency"] for point in each["points"]]
        for who, each in results.get("rates", {}).items()
        if "points" in each
    }
    if series:
        labels = [f"{point['rate']:g}" for point in next(iter(results["rates"].values()))["points"]]
        pictures.append(Chart("Normalised latency by requests a second", "s a token", labels, series, "lines"))
    return pictures


CHOICE: str | None = None

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in PLANS:
        CHOICE = sys.argv.pop(1)
    sys.exit(main("headline", __doc__.partition("\n")[0], run, charts))
