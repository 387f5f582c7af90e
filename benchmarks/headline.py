"""The headline, rerun: how many times the tokens of transformers?

    python -m benchmarks.headline [llama|opt|rates|gpt2]

512 requests with lengths like ShareGPT's, all there at the beginning, for a model of random weights (`llama`: the shape
of Llama-2-7B, the default on a GPU; `opt`: OPT-13B's; `gpt2`: GPT-2 with 124M parameters, the default on a CPU, where
there are 32 requests of half the length). Each engine serves them in a process of its own:

    static       transformers' `generate`, in the largest batches that do not run out of memory
    continuous   transformers' `generate_batch`, with its CUDA graphs and overlapped steps
    reserving    minipage with no more requests at a time than fit if each reserves memory for the longest text
    minipage     as it is

Before that, all four generate for a small model, and have to say the same. `rates` asks the last two, with
Llama-2-7B's shape on a GPU, at several rates, by Poisson's law, for their normalised latency (seconds a token, waiting
included): the axes of the paper's Figure 12. A run takes less than eight minutes: what does not fit is left out, and
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
from benchmarks.headline_peers import Task, continuous, in_process, minipage, minipage_at_rates, static
from benchmarks.measure import console, grid, main
from minipage.errors import ConfigurationError
from minipage.simulate.configs import CONFIGS
from minipage.simulate.workload import SHAREGPT

ENGINES = "minipage", "reserving", "static", "continuous"
GOALS = {"static": 24.0, "continuous": 6.0}
BUDGET = 460.0  # seconds
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


LIMITS = {"static": 30.0, "continuous": 130.0, "reserving": 60.0, "minipage": 60.0}
CPU_LIMITS = {"static": 60.0, "continuous": 100.0, "reserving": 60.0, "minipage": 60.0}
PLANS = {
    "llama": Plan("Llama-2-7B", 512, 1.0, 1024, 2048, 512, LIMITS),
    "rates": Plan("Llama-2-7B", 512, 1.0, 1024, 2048, 256, {}, (2.0, 6.0, 10.0, 14.0, 18.0)),
    "opt": Plan("OPT-13B", 512, 1.0, 1024, 2048, 256, LIMITS),
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
        same = says_the_same(folder, device, settings, deadline)
        config = CONFIGS[plan.model] | NO_TOKENS
        (Path(folder) / "config.json").write_text(json.dumps(config))
        asked = requests(plan, config["vocab_size"])
        task = Task(folder, device, dtype, plan.max_num_seqs, plan.max_model_len, asked, 0.0)
        results: dict[str, Any] = {"model": plan.model, "device": device, "texts are equal": same, "engines": {}}
        for who in ENGINES if not plan.rates else ():
            its_task = task._replace(limit=plan.limits[who])
            patience = deadline.left(plan.limits[who] + 120)
            if patience < 60:
                results["engines"][who] = {"error": "there was no time left"}
                continue
            results["engines"][who] = ask(who, its_task, patience, settings)
            console.print(f"{who}: {results['engines'][who]}", style="dim", markup=False)
        if plan.rates:
            results["rates"] = at_rates(task, plan, deadline)
    results["ratios"] = show(results)
    return results


def ask(who: str, task: Task, patience: float, settings: dict[str, bool]) -> dict[str, Any]:
    if who == "static":
        return in_process(static, task, patience)
    if who == "continuous":
        return in_process(continuous, task, patience, settings)
    return in_process(minipage, task, patience, who == "reserving")


def at_rates(task: Task, plan: Plan, deadline: Deadline) -> dict[str, Any]:
    task = task._replace(limit=8.0)
    return {
        who: in_process(minipage_at_rates, task, max(1.0, deadline.left(190)), who == "reserving", list(plan.rates))
        for who in ("minipage", "reserving")
    }


def says_the_same(folder: str, device: str, settings: dict[str, bool], deadline: Deadline) -> dict[str, bool | str]:
    """Whether the texts of a small model, in float32, are those of minipage."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    small = Path(folder) / "small"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in SMALL.items() if k != "model_type"})).save_pretrained(small)
    rng = np.random.default_rng(3)
    asked = [(rng.integers(0, 512, n).tolist(), 24) for n in (5, 17, 40, 64)]
    task = Task(str(small), device, "float32", 4, 512, asked, 60.0, weights=True)
    texts = {who: ask(who, task, deadline.left(100), settings) for who in ENGINES}
    ours = texts["minipage"].get("texts")
    same = {who: result.get("error") or result["texts"] == ours for who, result in texts.items()}
    console.print(f"texts of a small model are minipage's: {same}")
    return same


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
            f"{goal:g}" if goal else "", f"{result.get('finished', 0)}",
        )  # fmt: skip
        if "error" in result:
            notes.append(f"{who}: {result['error']}.")
        elif "batch_size" in result:
            run, rest = result["steps_run"], result["steps_worked_out"]
            notes.append(f"{who}: batches of {result['batch_size']}; {run:,} steps run, {rest:,} worked out.")
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
