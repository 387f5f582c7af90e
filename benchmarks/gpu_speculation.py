"""What do guesses gain on a GPU? `python -m benchmarks.gpu_speculation`

The shapes of Llama-3.1-8B and of GPT-2 with 124M parameters in float16, with random weights. Each text is made without
drafts (steps overlap then), and with seven (steps are plain then):

    n-grams       what the text itself suggests, as `speculative_config` has it
    every third   right, except at every third place: three tokens a step, as n-grams reach where code is repeated with
                  changes (docs/performance.md)
    wrong         always wrong: what guesses cost, as they become fewer

at 1 text, and at 32, where 32 * 8 rows are more than a step with drafts may have (`cheap_rows`): it switches itself
off. The last lines are what would happen otherwise.

With and without drafts take turns; the quickest round of each counts. With random weights many tokens are nearly
equally likely, in bfloat16 even more, and of eight rows a product is rounded in another way than of one. So where the
text with drafts is another, who knows the text learns it, and it is made again, before anything is measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.charts import Chart
from benchmarks.gpu_tensor_parallel import shape
from benchmarks.measure import console, main, needed, require_gpu
from minipage import LLM, SamplingParams
from minipage.engine.drafts import NGrams, Proposer

with needed():
    import torch

LLAMA_3 = shape(4096, 14_336, 32, 32, 8, vocab_size=128_256)  # Llama-3.1-8B's
GPT2 = {
    "model_type": "gpt2", "vocab_size": 50_257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
}  # fmt: skip
PROMPT_LEN, NUM_TOKENS, ROUNDS = 128, 96, 4
LESSONS = {1: 16, 32: 3}  # by number of texts: rounds in which they are learnt, at most
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
GOAL, LEAST = 1.8, 0.95


class Known:
    """Knows the texts, and lies where a multiple of `every` tokens have been said."""

    def __init__(self, prompts: list[list[int]], every: int) -> None:
        self.prompts, self.every = prompts, every
        self.texts: dict[tuple[int, ...], list[int]] = {}

    def learn(self, texts: list[list[int]]) -> bool:
        """What is said after the prompts; whether that is new."""
        before = self.texts
        self.texts = {tuple(prompt): prompt + text for prompt, text in zip(self.prompts, texts)}
        return self.texts != before

    def propose(self, texts: list[list[int]], counts: list[int]) -> list[list[int]]:
        return [self._after(text, count) for text, count in zip(texts, counts)]

    def _after(self, text: list[int], count: int) -> list[int]:
        known = self.texts[tuple(text[:PROMPT_LEN])]
        places = range(len(text), min(len(text) + count, len(known)))
        return [known[i] ^ (i % self.every == 0) for i in places]


def run(quick: bool) -> dict[str, Any]:
    require_gpu()
    console.print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    rows = []
    for name, config in {"GPT-2 124M": GPT2} if quick else {"Llama-3.1-8B": LLAMA_3, "GPT-2 124M": GPT2}:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            rows += measure(name, folder)
    one = [row for row in rows if row["texts"] == 1 and row["proposer"] == "every third"]
    for row in one:
        met = "met" if row["ratio"] >= GOAL else "not met"
        console.print(f"{row['model']}, one text, three tokens a step: the goal of {GOAL} times is {met}.")
    least = min(row["ratio"] for row in rows if row["most_tokens"] < 256)
    console.print(f"The least is {least:.2f}. The goal of {LEAST} is {'met' if least >= LEAST else 'not met'}.")
    return {"gpu": torch.cuda.get_device_name(), "rows": rows}


def measure(model: str, folder: str) -> list[dict[str, Any]]:
    options = {"device": "cuda", "dtype": "float16", "load_format": "dummy", "memory": "4GiB", "seed": 0}
    plain, ahead = (LLM(folder, speculative_config=config, **options) for config in (None, {"method": "ngram"}))
    speculation: Any = ahead.speculation  # type: ignore[attr-defined]
    as_it_is = speculation.most_rows
    rows = []
    for num_texts, most_tokens in ((1, as_it_is), (32, as_it_is), (32, 256)):
        speculation.most_rows = most_tokens
        prompts = np.random.default_rng(0).integers(0, 50_000, (num_texts, PROMPT_LEN)).tolist()
        proposers: dict[str, Proposer] = {
            "n-grams": NGrams(1, 8),
            "every third": Known(prompts, 3),
            "wrong": Known(prompts, 1),
        }
        for name, proposer in proposers.items():
            speculation.proposer = proposer
            row = compare(*in_turn(plain, ahead, prompts, proposer))
            rows.append({"model": model, "texts": num_texts, "most_tokens": most_tokens, "proposer": name, **row})
            show(rows[-1])
    return rows


def in_turn(plain: LLM, ahead: LLM, prompts: list[list[int]], proposer: Proposer) -> list[dict[str, Any]]:
    """The quickest of a few rounds without drafts, and with them, after some in which kernels are compiled, graphs
    captured, and texts learnt."""
    texts = serve(plain, prompts)["texts"]
    if isinstance(proposer, Known):
        for _ in range(LESSONS[len(prompts)]):
            if proposer.learn(texts):
                texts = serve(ahead, prompts)["texts"]
    else:
        serve(ahead, prompts)
    rounds = [[serve(llm, prompts) for llm in (plain, ahead)] for _ in range(ROUNDS)]
    return [max(of_one, key=lambda found: found["tokens_per_second"]) for of_one in zip(*rounds)]


def serve(llm: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    """Microseconds of a step (all of them have their first token), tokens a second from then on, and the texts."""
    llm.reset_stats()
    ids = [llm.add_request(prompt, GREEDY) for prompt in prompts]
    while llm.stats()["vllm:generation_tokens"] < len(prompts):
        llm.step()
    before, texts, ends = llm.stats()["vllm:generation_tokens"], {}, [perf_counter()]
    while llm.has_unfinished_requests():
        texts |= {output.request_id: output.outputs[0].token_ids for output in llm.step() if output.finished}
        ends.append(perf_counter())
    stats = llm.stats()
    drafted = stats.get("vllm:spec_decode_num_draft_tokens", 0)
    return {
        "step_us": 1e6 * median(np.diff(ends).tolist()),
        "tokens_per_second": (stats["vllm:generation_tokens"] - before) / (ends[-1] - ends[0]),
        "acceptance": stats["vllm:spec_decode_num_accepted_tokens"] / drafted if drafted else None,
        "num_steps": len(ends) - 1,
        "texts": [texts[i] for i in ids],
    }


def compare(without: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    same = np.mean([a == b for one, other in zip(without["texts"], found["texts"]) for a, b in zip(one, other)])
    return {
        "without": {name: without[name] for name in ("step_us", "tokens_per_second")},
        "with": {name: number for name, number in found.items() if name != "texts"},
        "ratio": found["tokens_per_second"] / without["tokens_per_second"],
        "same": float(same),
    }


def show(row: dict[str, Any]) -> None:
    without, found = row["without"], row["with"]
    right = "no drafts" if found["acceptance"] is None else f"{found['acceptance']:.0%} right"
    console.print(
        f"{row['model']}, {row['texts']} texts, at most {row['most_tokens']} rows, {row['proposer']}: "
        f"{without['tokens_per_second']:,.0f} tokens/s, with drafts {found['tokens_per_second']:,.0f}, "
        f"{row['ratio']:.2f} times; {right}; a step {without['step_us']:,.0f} and {found['step_us']:,.0f} us, "
        f"{found['num_steps']} steps; {row['same']:.1%} of the tokens the same"
    )
    sys.stdout.flush()


def charts(results: dict[str, Any]) -> list[Chart]:
    rows = [row for row in results["rows"] if row["texts"] == 1]
    names = list(dict.fromkeys(row["proposer"] for row in rows))
    series = {
        model: [row["ratio"] for row in rows if row["model"] == model]
        for model in dict.fromkeys(row["model"] for row in rows)
    }
    return [Chart("Tokens/s with drafts, over those without, one text on a GPU", "times", names, series)]


if __name__ == "__main__":
    sys.exit(main("gpu_speculation", "What guesses gain on a GPU.", run, charts))
