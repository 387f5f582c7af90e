"""What do guesses gain, and what do they cost? `python -m benchmarks.speculation`

The same texts with and without drafts (n-grams, seven at a time), by two engines in turn, at 1, 4, 16 and 32 texts:

    gpt2       the shape of GPT-2 with 124M parameters, random weights. Greedily it says the same over and over, which
               is guessed nearly always; at temperature 1 any token may come, which nobody guesses
    smollm2    SmolLM2-135M-Instruct, if it is installed: code to be repeated, JSON under a schema (if llguidance is
               there), and a tale at a temperature that makes it unlikely to repeat itself

Each text's tokens are compared, too: they must be the same. The goals: 1.8 times the tokens/s for one text that repeats
itself, and never less than 0.95 times.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from rich.progress import track

from benchmarks.charts import Chart
from benchmarks.engine import GPT2, make_checkpoint
from benchmarks.measure import OtherPrograms, console, grid, main
from minipage import LLM, SamplingParams, StructuredOutputsParams
from minipage.errors import MinipageError
from minipage.model import gpt2

CONFIG = {"method": "ngram"}
TINY = gpt2.GPT2(vocab_size=256, n_positions=256, n_embd=64, n_layer=2, n_head=2)
NUM_TEXTS = 1, 4, 16, 32
BLOCK_SIZE = 16
GOAL, LEAST = 1.8, 0.95
CODE = '''\
def area(width, height):
    """The area of a rectangle."""
    if width < 0 or height < 0:
        raise ValueError("width and height must not be negative")
    return width * height


def perimeter(width, height):
    """The perimeter of a rectangle."""
    if width < 0 or height < 0:
        raise ValueError("width and height must not be negative")
    return 2 * (width + height)
'''
PEOPLE = {
    "type": "array",
    "minItems": 8,
    "items": {
        "type": "object",
        "properties": {"first_name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
        "required": ["first_name", "age"],
        "additionalProperties": False,
    },
}


class Load(NamedTuple):
    """What one text is asked for; text number i gets seed i."""

    name: str
    can_be_guessed: bool
    prompt: Callable[[LLM, int], list[int]]  # of an engine, and the text's number
    params: dict[str, Any]


def chat(question: str) -> Callable[[LLM, int], list[int]]:
    from minipage.engine.conversations import chat_prompts

    def prompt(llm: LLM, number: int) -> list[int]:
        [rendered] = chat_prompts([{"role": "user", "content": question}], llm.tokenizer)
        return rendered["prompt_token_ids"] if isinstance(rendered, dict) else llm.tokenizer.encode(rendered)

    return prompt


def random_prompt(llm: LLM, number: int) -> list[int]:
    generator = np.random.default_rng(number)
    return generator.integers(0, llm.config.vocab_size, 64).tolist()  # [64]


def loads_of_gpt2() -> list[Load]:
    return [
        Load("repeats itself", True, random_prompt, {"temperature": 0}),
        Load("cannot be guessed", False, random_prompt, {"temperature": 1.0}),
    ]


def loads_of_smollm2() -> list[Load]:
    loads = [
        Load("code to be repeated", True, chat(f"Repeat this code, and nothing else:\n\n{CODE}"), {"temperature": 0}),
        Load("a wild tale", False, chat("Tell a wild tale."), {"temperature": 1.5}),
    ]
    if find_spec("llguidance"):
        params = {"temperature": 0, "structured_outputs": StructuredOutputsParams(json=PEOPLE)}
        loads.insert(1, Load("JSON under a schema", True, chat("Invent eight people, as JSON."), params))
    return loads


class Turn(NamedTuple):
    """One engine, once through one load."""

    tokens_per_s: float
    token_ids: list[list[int]]
    acceptance: float | None  # of the drafts; None if there were none


def serve(llm: LLM, load: Load, num_texts: int, num_tokens: int) -> Turn:
    prompts = [{"prompt_token_ids": load.prompt(llm, i)} for i in range(num_texts)]
    more = {"max_tokens": num_tokens, "ignore_eos": "structured_outputs" not in load.params}
    params = [SamplingParams(seed=i, **more, **load.params) for i in range(num_texts)]
    llm.reset_stats()
    start = perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = perf_counter() - start
    token_ids = [output.outputs[0].token_ids for output in outputs]
    stats = llm.stats()
    drafted = stats.get("vllm:spec_decode_num_draft_tokens", 0)
    acceptance = stats["vllm:spec_decode_num_accepted_tokens"] / drafted if drafted else None
    return Turn(sum(map(len, token_ids)) / seconds, token_ids, acceptance)


def measure(model: str, folder: str | Path, loads: list[Load], quick: bool) -> list[dict[str, Any]]:
    num_tokens, rounds = (24, 2) if quick else (96, 5)
    sizes = NUM_TEXTS[:2] if quick else NUM_TEXTS
    num_blocks = max(sizes) * (320 + num_tokens) // BLOCK_SIZE
    plain, ahead = (
        LLM(folder, block_size=BLOCK_SIZE, num_blocks=num_blocks, speculative_config=config)
        for config in (None, CONFIG)
    )
    rows = []
    cases = [(load, num_texts) for load in loads for num_texts in sizes]
    for load, num_texts in track(cases, model, console=console, transient=True, disable=not console.is_terminal):
        pairs = [[serve(llm, load, num_texts, num_tokens) for llm in (plain, ahead)] for _ in range(rounds + 1)][
            1:
        ]  # in the first round, kernels are compiled
        rows.append(
            {
                "model": model,
                "load": load.name,
                "can_be_guessed": load.can_be_guessed,
                "num_texts": num_texts,
                "plain": [before.tokens_per_s for before, _ in pairs],
                "ahead": [after.tokens_per_s for _, after in pairs],
                "ratio": statistics.median(after.tokens_per_s / before.tokens_per_s for before, after in pairs),
                "acceptance": pairs[-1][1].acceptance,
                "same_texts": all(before.token_ids == after.token_ids for before, after in pairs),
            }
        )
    return rows


def run(quick: bool) -> list[dict[str, Any]]:
    others = OtherPrograms()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), TINY if quick else GPT2)
        rows = measure("gpt2", folder, loads_of_gpt2(), quick)
    if not quick:
        try:
            rows += measure("smollm2", "smollm2", loads_of_smollm2(), quick)
        except MinipageError as error:
            console.print(f"Without smollm2: {error}")
    headings = ["", "texts", "without", "with", "times", "right", "same"]
    table = grid("Tokens/s without and with drafts (medians), and how many drafts are right", headings)
    for row in rows:
        accepted = "-" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
        speeds = (f"{statistics.median(row[name]):,.0f}" for name in ("plain", "ahead"))
        name = f"{row['model']}, {row['load']}"
        same = "yes" if row["same_texts"] else "NO"
        table.add_row(name, str(row["num_texts"]), *speeds, f"{row['ratio']:.2f}", accepted, same)
    console.print(table)
    say_whether_good_enough(rows)
    console.print(f"Meanwhile other programs took {others} of the processors.\n")
    return rows


def say_whether_good_enough(rows: list[dict[str, Any]]) -> None:
    singles = {f"{row['model']}, {row['load']}": row for row in rows if row["num_texts"] == 1 and row["can_be_guessed"]}
    for name, row in singles.items():
        met = "met" if row["ratio"] >= GOAL else "not met"
        console.print(f"One text, {name}: {row['ratio']:.2f} times. The goal of {GOAL} is {met}.")
    least = min(rows, key=lambda row: row["ratio"])
    met = "met" if least["ratio"] >= LEAST else "not met"
    where = f"{least['model']}, {least['load']}, {least['num_texts']} texts"
    console.print(f"The least is {least['ratio']:.2f} ({where}). The goal of {LEAST} is {met}.")


def charts(results: list[dict[str, Any]]) -> list[Chart]:
    sizes = sorted({row["num_texts"] for row in results})
    by_case = {(f"{row['model']}, {row['load']}", row["num_texts"]): row["ratio"] for row in results}
    series = {name: [by_case.get((name, n)) for n in sizes] for name in dict.fromkeys(name for name, _ in by_case)}
    return [Chart("Tokens/s with drafts, over those without", "times", [f"{n} texts" for n in sizes], series, "lines")]


if __name__ == "__main__":
    sys.exit(main("speculation", "What guesses gain, and what they cost.", run, charts))
