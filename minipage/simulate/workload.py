"""Who asks for what, and when: arrivals, drawn from distributions with a seed, or read from a file.

Real traces cannot be shipped. The paper publishes the means of its two, and here are log-normal and gamma
distributions of these means. Their spreads are ours, and the same in every figure:

    ShareGPT   161.31 tokens in, 337.99 out    prompts log-normal, deviation 200; outputs gamma, deviation 296
    Alpaca      19.31 tokens in,  58.45 out    prompts as wide in proportion, deviation 24; outputs exponential
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minipage.errors import ConfigurationError, count, shown
from minipage.simulate.simulation import gamma_parameters, lognormal_parameters


class Arrival(NamedTuple):
    """A request, before anybody has seen it."""

    time: float  # seconds
    num_prompt_tokens: int
    num_output_tokens: int
    n: int = 1  # texts, all of this length
    is_beam: bool = False  # they are found by beam search
    prefix: int = 0  # tokens at the beginning of the prompt that it has in common with all others


FEWEST_THAT_FIT = 10  # of the first 1000 that are drawn; with fewer, drawing again would take for ever


class Lengths(NamedTuple):
    """Of prompts and outputs, in tokens. A deviation of 0 makes all alike."""

    name: str
    prompt_mean: float
    prompt_std: float
    output_mean: float
    output_std: float
    max_model_len: int = 2048  # what would be longer is drawn again

    def draw(self, seed: int) -> Iterator[tuple[int, int]]:
        """An endless stream of lengths, the same for the same seed."""
        generator = np.random.default_rng(seed)
        prompt = lognormal_parameters(self.prompt_mean, self.prompt_std)
        shape = gamma_parameters(self.output_mean, self.output_std) if self.output_std else None
        is_first = True
        while True:
            prompts = generator.lognormal(*prompt, 1000)  # [1000]
            outputs = generator.gamma(*shape, 1000) if shape else np.full(1000, self.output_mean)  # [1000]
            drawn = [(max(1, round(p)), max(1, round(o))) for p, o in zip(prompts.tolist(), outputs.tolist())]
            fitting = [lengths for lengths in drawn if sum(lengths) <= self.max_model_len]
            if is_first and len(fitting) < FEWEST_THAT_FIT:
                raise ConfigurationError(
                    f"of {self.name}'s texts hardly any has at most {count(self.max_model_len, 'token')}. Choose "
                    "other lengths, or let texts be longer."
                )
            is_first = False
            yield from fitting


SHAREGPT = Lengths("ShareGPT", 161.31, 200, 337.99, 296)
ALPACA = Lengths("Alpaca", 19.31, 24, 58.45, 58.45)


def poisson(lengths: Iterable[tuple[int, int]], rate: float, seed: int, **others: int) -> Iterator[Arrival]:
    """Requests of these lengths, of which `rate` come each second on average, none knowing of the others."""
    if not rate > 0:
        raise ConfigurationError(f"the rate is {rate!r}; it must be a number of requests a second, above 0.")
    generator = np.random.default_rng([seed, 1])
    now = 0.0
    gaps: list[float] = []
    for num_prompt_tokens, num_output_tokens in lengths:
        if not gaps:
            gaps = generator.exponential(1 / rate, 1000).tolist()  # [1000]
        now += gaps.pop()
        yield Arrival(now, num_prompt_tokens, num_output_tokens, **others)  # type: ignore[arg-type]


def until(arrivals: Iterable[Arrival], seconds: float) -> Iterator[Arrival]:
    """Those of the first `seconds`."""
    for arrival in arrivals:
        if arrival.time > seconds:
            return
        yield arrival


COLUMNS = {
    "time": ("time", "timestamp", "arrived_at", "arrival"),
    "prompt": ("num_prompt_tokens", "prompt", "ContextTokens", "num_prefill_tokens", "input"),
    "output": ("num_output_tokens", "output", "GeneratedTokens", "num_decode_tokens"),
}  # our names, and those of traces that are published


def read_trace(path: Path | str) -> list[Arrival]:
    """From a CSV file with columns for prompt and output tokens, and perhaps for the time: seconds, or a date and time.

    Raises ConfigurationError, which names the line.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigurationError(f"the trace {path} cannot be read ({error}).") from error
    names = {str(name).strip().lower(): name for name in (rows[0][1] if rows else {})}
    columns = {
        what: next((names[word.lower()] for word in words if word.lower() in names), None)
        for what, words in COLUMNS.items()
    }
    if columns["prompt"] is None or columns["output"] is None:
        raise ConfigurationError(
            f"the trace {path} needs the columns num_prompt_tokens and num_output_tokens, and perhaps time; "
            f"it has {', '.join(names) or 'no rows'}."
        )
    return sorted(read_row(path, number, row, columns) for number, row in rows)


def read_row(path: Path | str, number: int, row: dict[str, str], columns: dict[str, str | None]) -> Arrival:
    try:
        time = seconds(row[columns["time"]]) if columns["time"] else 0.0
        arrival = Arrival(time, whole(row[columns["prompt"] or ""]), whole(row[columns["output"] or ""]))
    except ValueError:
        cells = ", ".join(shown(row[name]) for name in columns.values() if name)
        raise ConfigurationError(
            f"line {number} of {path} has {cells}; tokens are whole numbers, and a time is in seconds, or a date."
        ) from None
    if not math.isfinite(arrival.time) or arrival.num_prompt_tokens < 1 or arrival.num_output_tokens < 1:
        raise ConfigurationError(
            f"line {number} of {path}: a request has at least one token in and one out, and a time that is a number."
        )
    return arrival


def seconds(text: str) -> float:
    """As a number; or since 1970, of "2023-11-16 18:17:03.9799600" and what else ISO 8601 allows."""
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def whole(text: str) -> int:
    """12, and 12.0, which tables with gaps are written with."""
    return int(text.strip().removesuffix(".0"))
