"""A deployment, simulated: what it serves at a rate, the most it can serve, and what to change first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from minipage.errors import ConfigurationError, shown
from minipage.memory import blocks_needed
from minipage.memory.kv_groups import blocks_held
from minipage.plan.deployment import Deployment
from minipage.simulate.serve import Report, Setting, capacity, serve
from minipage.simulate.simulation import mean_held
from minipage.simulate.workload import ALPACA, SHAREGPT, Arrival, Lengths, poisson, read_trace, until

KNOWN = {"sharegpt": SHAREGPT, "alpaca": ALPACA}
MINUTE = 60.0
MOST_TIMES = 10.0  # what can be served: a minute of more takes long to simulate, and says no more
NUM_SAMPLED = 2000  # requests that means are taken of
# What is simulated of a minute, at most: some seconds of work. Tiny texts on a large GPU are half a million requests a
# minute, and say no more than the first of them.
MOST_REQUESTS, MOST_TOKENS = 30_000, 1_000_000
MOST_GENERATED = 10_000_000  # tokens, to find the most that is served: some minutes of work
MOST_SEATS = 4096  # requests at a time
MOST_BLOCKS = 1_000_000  # more than one real GPU holds; of tiny models' blocks there would be many millions


@dataclass(frozen=True)
class Workload:
    """What is asked for: "sharegpt", "alpaca", "512:128" (tokens in and out), or a CSV file of one's own."""

    lengths: str = "sharegpt"
    seed: int = 0

    def pairs(self, longest: int) -> Iterator[tuple[int, int]]:
        """An endless stream of lengths, of which none is longer than may be."""
        if self.lengths.lower() in KNOWN:
            yield from KNOWN[self.lengths.lower()]._replace(max_model_len=longest).draw(self.seed)
        if self.lengths.lower().endswith(".csv"):
            rows = [(row.num_prompt_tokens, row.num_output_tokens) for row in read_trace(Path(self.lengths))]
            fitting = [row for row in rows if sum(row) <= longest]
            if not fitting:
                raise ConfigurationError(f"all requests of {self.lengths} are longer than {longest:,} tokens.")
            while True:
                yield from fitting
        prompt, _, output = self.lengths.partition(":")
        if not (is_number(prompt) and is_number(output)):
            raise ConfigurationError(
                f"lengths are {shown(self.lengths)}; they must be {', '.join(KNOWN)}, tokens in and out such as "
                "512:128, or a .csv file with the columns num_prompt_tokens and num_output_tokens."
            )
        if int(prompt) + int(output) > longest:
            raise ConfigurationError(f"{self.lengths} is longer than the longest text that fits, {longest:,} tokens.")
        yield from Lengths("fixed", int(prompt), 1e-6, int(output), 0, longest).draw(self.seed)

    def arrivals(self, rate: float, longest: int) -> Iterator[Arrival]:
        return poisson(self.pairs(longest), rate, self.seed)

    def minute(self, longest: int) -> list[Arrival]:
        """The first minute of a file that says when its requests came; nothing, if it does not."""
        trace = read_trace(Path(self.lengths)) if self.lengths.lower().endswith(".csv") else []
        if not trace or trace[-1].time == trace[0].time:
            return []
        moved = (arrival._replace(time=arrival.time - trace[0].time) for arrival in trace)
        return [a for a in until(moved, MINUTE) if a.num_prompt_tokens + a.num_output_tokens <= longest]


def is_number(text: str) -> bool:
    """Whether it is one of tokens. With more digits than these, int would refuse it in words of its own."""
    return text.isdecimal() and len(text) < 20 and int(text) > 0


@dataclass(frozen=True)
class Advice:
    """A change, and what it does to the most that is served."""

    change: str
    capacity: float  # requests a second, afterwards
    times: float  # of what it was


@dataclass(frozen=True)
class Forecast:
    """What a deployment does with a workload."""

    fit_on_average: float  # requests that the cache holds, by their mean length while they run
    fit_reserving: float  # if each reserved memory for the longest sequence
    waste: float  # share of the slots in use that hold no token
    capacity: float  # requests a second that it can serve
    rate: float  # of the minute that was simulated
    seconds: float  # of that minute in which requests came: all of it, unless there were too many
    report: Report
    advice: list[Advice]


def setting_of(deployment: Deployment) -> Setting:
    blocks = deployment.blocks()
    seats = min(deployment.max_num_seqs, blocks)  # whoever runs has a block at least
    if seats > MOST_SEATS:
        raise ConfigurationError(
            f"max_num_seqs is {deployment.max_num_seqs:,}, and at most {MOST_SEATS:,} requests at a time are "
            "simulated: lower it, or ask for --sizes-only."
        )
    num_slots = min(blocks, MOST_BLOCKS) * deployment.block_size
    return Setting(
        deployment.cost, num_slots, "paged", deployment.block_size, deployment.longest, seats,
        deployment.max_num_batched_tokens, watermark=0.0,
    )  # fmt: skip


def forecast(
    deployment: Deployment, workload: Workload, rate: float | None = None, *, num_requests: int = 400,
    with_advice: bool = True,
) -> Forecast:  # fmt: skip
    """Simulate a minute at `rate` requests a second; without one, as the file says, or at 80 % of the most."""
    setting, longest = setting_of(deployment), deployment.longest_that_fits()
    sample = list(islice(workload.pairs(longest), NUM_SAMPLED))
    num_requests = fewer_of_long_texts(sample, setting.max_num_seqs, num_requests)
    if deployment.has_windows:
        held, wasted = mean_in_windows(deployment, sample)
    else:
        held, wasted = mean_held(sample), mean_tail(sample, deployment.block_size)  # type: ignore[arg-type]  # pairs
    if rate is not None and not (rate > 0 and math.isfinite(rate)):
        raise ConfigurationError(f"the rate is {rate}; it must be a number of requests a second, above 0.")
    most = most_of(deployment, workload, num_requests)
    own = workload.minute(longest) if rate is None else []
    if rate is None:
        rate = len(own) / MINUTE if own else 0.8 * most
    if not own and rate > MOST_TIMES * most:
        raise ConfigurationError(
            f"the rate is {rate:g} requests a second, and {most:.3g} is the most that is served: waiting times only "
            f"grow. Give a rate of {MOST_TIMES:g} times that at most."
        )
    seconds = span(sample, rate)
    arrivals = until(own or workload.arrivals(rate, longest), seconds)
    report = serve(setting, arrivals, warm=seconds / 6, keep=200_000)
    return Forecast(
        fit_on_average=deployment.blocks() * deployment.block_size / (held + wasted),
        fit_reserving=deployment.concurrency(),
        waste=wasted / (held + wasted),
        capacity=most,
        rate=rate,
        seconds=seconds,
        report=report,
        advice=advise(deployment, workload, most, num_requests) if with_advice else [],
    )


def fewer_of_long_texts(pairs: list[tuple[int, int]], seats: int, num_requests: int) -> int:
    """Of how many requests the most that is served is measured. Raises ConfigurationError if that takes too long."""
    num_tokens = mean_output(pairs)
    fewer = max(2 * seats, min(num_requests, int(MOST_TOKENS / num_tokens)))
    if (seats + fewer) * num_tokens > MOST_GENERATED:
        raise ConfigurationError(
            f"{seats:,} requests at a time of {num_tokens:,.0f} tokens out each take too long to simulate: lower "
            "max_num_seqs, or ask for --sizes-only."
        )
    return min(num_requests, fewer)


def mean_output(pairs: list[tuple[int, int]]) -> float:
    return sum(output for _, output in pairs) / len(pairs)


def span(pairs: list[tuple[int, int]], rate: float) -> float:
    """Seconds of the minute to simulate: as many as keep requests, and the tokens that they generate, few enough."""
    return min(MINUTE, MOST_REQUESTS / rate, MOST_TOKENS / (rate * mean_output(pairs)))


def most_of(deployment: Deployment, workload: Workload, num_requests: int) -> float:
    setting = setting_of(deployment)
    seats = setting.max_num_seqs
    arrivals = caught_midway(workload.arrivals(1.0, deployment.longest_that_fits()), seats)
    return capacity(setting, arrivals, seats + max(num_requests, 2 * seats), num_warm=seats)


def caught_midway(arrivals: Iterable[Arrival], seats: int) -> Iterator[Arrival]:
    """The first ones, who start together, are given different shares of their answers, as on a server that has run for
    long. Otherwise equal texts would end together, too, and their prompts would fall into the same steps for ever."""
    for i, arrival in enumerate(arrivals, 1):
        share = min(1.0, i / seats)
        yield arrival._replace(num_output_tokens=max(1, round(share * arrival.num_output_tokens)))


def mean_tail(pairs: Iterable[tuple[int, int]], block_size: int) -> float:
    """Slots behind the last token, of a request, averaged over its steps."""
    empty = steps = 0
    for prompt, output in islice(pairs, 200):
        for length in range(prompt + 1, prompt + output + 1):
            empty += blocks_needed(length, block_size) * block_size - length
        steps += output
    return empty / steps


def mean_in_windows(deployment: Deployment, pairs: Iterable[tuple[int, int]]) -> tuple[float, float]:
    """Slots of a request that hold a token which is looked at, and the others in its blocks, averaged over its steps;
    of all groups of layers, each of which has blocks of its own."""
    windows, size = deployment.groups.windows, deployment.block_size
    in_blocks = seen = steps = 0
    for prompt, output in islice(pairs, 200):
        for length in range(prompt + 1, prompt + output + 1):
            in_blocks += size * sum(blocks_held(length, window, size, 1) for window in windows)
            seen += sum(min(length, window) for window in windows)
        steps += output
    return seen / steps, (in_blocks - seen) / steps


def advise(deployment: Deployment, workload: Workload, most: float, num_requests: int) -> list[Advice]:
    """Changes that help, the best first, by simulating each."""
    advice = []
    for change, options in changes(deployment):
        try:
            other = copy(deployment)  # with the settings of its model, which are not looked for again
            vars(other).update(options)
            changed = most_of(other, workload, num_requests)
        except ConfigurationError:  # heads that cannot be shared out, no room, or too many seats
            continue
        if changed > 1.02 * most:
            advice.append(Advice(change, changed, changed / most))
    return sorted(advice, key=lambda each: -each.times)


def changes(deployment: Deployment) -> Iterator[tuple[str, dict[str, Any]]]:
    yield f"max_num_seqs={2 * deployment.max_num_seqs}", {"max_num_seqs": 2 * deployment.max_num_seqs}
    if deployment.kv_cache_dtype not in ("fp8", "int8"):
        yield "kv_cache_dtype='fp8'", {"kv_cache_dtype": "fp8"}
    is_measured = deployment.num_blocks is None and deployment.kv_cache_memory is None
    if is_measured and deployment.gpu_memory_utilization < 0.95:
        yield "gpu_memory_utilization=0.95", {"gpu_memory_utilization": 0.95}
    if deployment.is_gpu and is_measured:
        double = 2 * deployment.tensor_parallel_size
        yield f"tensor_parallel_size={double}", {"tensor_parallel_size": double}
        if deployment.dtype in ("bfloat16", "float16"):
            yield "dtype='fp8' (weights of one byte)", {"dtype": "fp8"}
