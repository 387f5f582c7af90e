"""What do guesses gain, and what do they cost? `python -m benchmarks.speculation`, in about two and a half minutes.

The same texts with and without drafts (n-grams, seven at a time), by two engines in turn:

    gpt2       the shape of GPT-2 with 124M parameters, random weights. Greedily it says the same over and over, which
               is guessed nearly always; at temperature 1 any token may come, which nobody guesses
    smollm2    SmolLM2-135M-Instruct, if it is installed: code to be repeated, a passage to be quoted, JSON under a
               schema (if llguidance is there), and a tale at a temperature that makes it unlikely to repeat itself

One text, prompt and all, until it ends (192 tokens at most; 96 of those that have no end); and some of them as 32 texts
at once, whose prompts are in the prefix cache, 24 tokens each. Each line is printed as soon as it is known: its
tokens/s are medians, and "times" is the median of the ratios of each pair of turns. "cpu" is the same by processor
time, which other programs change less. Each text's tokens are compared, too: they must be the same. The goals: 1.8
times the tokens/s for one text that repeats itself, and never less than 0.95 times.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np

from benchmarks.charts import Chart
from benchmarks.engine import GPT2, make_checkpoint
from benchmarks.measure import OtherPrograms, console, main
from minipage import LLM, SamplingParams, StructuredOutputsParams
from minipage.errors import MinipageError
from minipage.model import gpt2

CONFIG = {"method": "ngram"}
TINY = gpt2.GPT2(vocab_size=256, n_positions=256, n_embd=64, n_layer=2, n_head=2)
MANY = 32  # texts at once
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
PASSAGE = """\
The meeting of the committee was held on Tuesday at nine o'clock. Present were Mrs. Adams, Mr. Brown, Dr. Clark and \
Ms. Davis. The minutes of the last meeting were read and approved. Mr. Brown reported that the roof had been \
repaired at a cost of 4,300 dollars. The next meeting will be held on the first Tuesday of March."""
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
    sizes: tuple[int, ...]  # texts at once
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
    forever = {"ignore_eos": True}
    return [
        Load("repeats itself", True, (1, MANY), random_prompt, {"temperature": 0, **forever}),
        Load("cannot be guessed", False, (1, MANY), random_prompt, {"temperature": 1.0, **forever}),
    ]


def loads_of_smollm2() -> list[Load]:
    code = chat(f"Repeat this code, and nothing else:\n\n{CODE}")
    passage = chat(f"Quote this passage word for word:\n\n{PASSAGE}")
    loads = [
        Load("code to be repeated", True, (1, MANY), code, {"temperature": 0}),
        Load("a passage to be quoted", True, (1,), passage, {"temperature": 0}),
        Load("a wild tale", False, (1, MANY), chat("Tell a wild tale."), {"temperature": 1.5, "ignore_eos": True}),
    ]
    if find_spec("llguidance"):
        params = {"temperature": 0, "structured_outputs": StructuredOutputsParams(json=PEOPLE)}
        loads.insert(2, Load("JSON under a schema", True, (1,), chat("Invent eight people, as JSON."), params))
    return loads


class Turn(NamedTuple):
    """One engine, once through one load."""

    tokens_per_s: float
    tokens_per_cpu_s: float  # of processor time
    token_ids: list[list[int]]
    acceptance: float | None  # of the drafts; None if there were none


def serve(llm: LLM, load: Load, num_texts: int, num_tokens: int) -> Turn:
    prompts = [{"prompt_token_ids": load.prompt(llm, i)} for i in range(num_texts)]
    params = [SamplingParams(seed=i, max_tokens=num_tokens, **load.params) for i in range(num_texts)]
    if num_texts == 1:
        llm.reset_prefix_cache()  # the prompt counts, too
    llm.reset_stats()
    start, cpu_start = perf_counter(), process_time()
    outputs = llm.generate(prompts, params)
    seconds, cpu_seconds = perf_counter() - start, process_time() - cpu_start
    token_ids = [output.outputs[0].token_ids for output in outputs]
    stats = llm.stats()
    drafted = stats.get("vllm:spec_decode_num_draft_tokens", 0)
    acceptance = stats["vllm:spec_decode_num_accepted_tokens"] / drafted if drafted else None
    count = sum(map(len, token_ids))
    return Turn(count / seconds, count / cpu_seconds, token_ids, acceptance)


def measure(model: str, folder: str | Path, loads: list[Load], quick: bool) -> list[dict[str, Any]]:
    """Measure and print each of the loads."""
    num_blocks = MANY * 416 // BLOCK_SIZE
    options: dict[str, Any] = {"block_size": BLOCK_SIZE, "num_blocks": num_blocks, "enable_prefix_caching": True}
    engines = [LLM(folder, speculative_config=config, **options) for config in (None, CONFIG)]
    rows = []
    for load in loads:
        for num_texts in load.sizes:
            num_tokens = 24 if quick or num_texts > 1 else 96 if "ignore_eos" in load.params else 192
            # Whether a loss is noise is harder to say than whether there is a gain.
            rounds = 2 if quick else 3 if num_texts > 1 else 4 if load.can_be_guessed else 6
            for llm in engines:
                serve(llm, load, num_texts, 8)  # kernels are compiled, and schemas
            pairs = [in_pair(engines, number, load, num_texts, num_tokens) for number in range(rounds)]
            row = {
                "model": model,
                "load": load.name,
                "can_be_guessed": load.can_be_guessed,
                "num_texts": num_texts,
                "plain": [before.tokens_per_s for before, _ in pairs],
                "ahead": [after.tokens_per_s for _, after in pairs],
                "ratio": statistics.median(after.tokens_per_s / before.tokens_per_s for before, after in pairs),
                "cpu": statistics.median(after.tokens_per_cpu_s / before.tokens_per_cpu_s for before, after in pairs),
                "acceptance": pairs[-1][1].acceptance,
                "same_texts": all(before.token_ids == after.token_ids for before, after in pairs),
            }
            say(row)
            rows.append(row)
    return rows


def in_pair(engines: list[LLM], number: int, *what: Any) -> tuple[Turn, Turn]:
    """A turn of each, (plain, ahead); who goes first changes with the number of the round."""
    order = engines[:: -1 if number % 2 else 1]
    turns = {id(llm): serve(llm, *what) for llm in order}
    plain, ahead = (turns[id(llm)] for llm in engines)
    return plain, ahead


COLUMNS = "{:<31}{:>6}{:>8}{:>7}{:>7}{:>6}{:>6}{:>6}"


def say(row: dict[str, Any]) -> None:
    accepted = "none" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
    speeds = (f"{statistics.median(row[name]):,.0f}" for name in ("plain", "ahead"))
    name, same = f"{row['model']}, {row['load']}", "yes" if row["same_texts"] else "NO"
    ratios = f"{row['ratio']:.2f}", f"{row['cpu']:.2f}"
    console.print(COLUMNS.format(name, row["num_texts"], *speeds, *ratios, accepted, same))


def run(quick: bool) -> list[dict[str, Any]]:
    others = OtherPrograms()
    console.print("Tokens/s without and with drafts, and how many drafts are right")
    console.print(COLUMNS.format("", "texts", "without", "with", "times", "cpu", "right", "same"))
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), TINY if quick else GPT2)
        rows = measure("gpt2", folder, loads_of_gpt2(), quick)
    if not quick:
        try:
            rows += measure("smollm2", "smollm2", loads_of_smollm2(), quick)
        except MinipageError as error:
            console.print(f"Without smollm2: {error}")
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
    console.print(f"The least is {least['ratio']:.2f} ({where}; cpu {least['cpu']:.2f}). The goal of {LEAST} is {met}.")


def charts(results: list[dict[str, Any]]) -> list[Chart]:
    sizes = sorted({row["num_texts"] for row in results})
    by_case = {(f"{row['model']}, {row['load']}", row["num_texts"]): row["ratio"] for row in results}
    series = {name: [by_case.get((name, n)) for n in sizes] for name in dict.fromkeys(name for name, _ in by_case)}
    return [Chart("Tokens/s with drafts, over those without", "times", [f"{n} texts" for n in sizes], series, "lines")]


if __name__ == "__main__":
    sys.exit(main("speculation", "What guesses gain, and what they cost.", run, charts))
