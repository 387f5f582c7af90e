"""The engine's steps on this machine, timed one by one, and a cost model of them; for `benchmarks.simulate`."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np

from minipage import LLM, SamplingParams
from minipage.attention.quantize import kv_dtype
from minipage.simulate.cost import CostModel, Sizes, Work
from minipage.simulate.machines import EPYC_2_CORES, GRAPHS, H200, ON_CPU, Machine, Overheads
from minipage.simulate.measured import Timed

REPEATS = 5
BATCHES = 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128
PROMPTS = 2, 8, 16, 17, 64, 65, 128, 129, 256, 257, 500  # on a GPU steps are padded to 16, 64, 128, 256 or 512


class WallClock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.begin = perf_counter()

    def now(self) -> float:
        return perf_counter() - self.begin

    def wait(self, seconds: float) -> None:
        sleep(seconds)


class ProcessorClock:
    """The same in seconds that this process computes: waiting is free, and other programs do not count."""

    def __init__(self) -> None:
        self.begin = process_time()
        self.waited = 0.0

    def now(self) -> float:
        return process_time() - self.begin + self.waited

    def wait(self, seconds: float) -> None:
        self.waited += seconds


Clock = WallClock | ProcessorClock


def start(llm: LLM, dtype: str) -> CostModel:
    """Where the fit begins."""
    is_gpu = dtype != "float32"
    machine, overheads = (H200, GRAPHS) if is_gpu else (EPYC_2_CORES, ON_CPU)
    overheads = replace(overheads, kernel=0.0)  # a part of reading here: one model has one number of layers
    return CostModel(Sizes.of(llm.config), machine, overheads, 1, 2.0 if is_gpu else 4.0, kv_dtype(dtype))


def capture_graphs(llm: LLM) -> None:
    """Batches of all sizes, with short and long contexts, and prompts of many lengths: what is captured, compiled or
    loaded once is, before clocks run."""
    most = llm.scheduler.max_num_seqs
    for length in (16, 500):
        for i in range(most):
            llm.add_request([1] * length, greedy(24 + i))
        finish(llm)
    for length in range(8, llm.scheduler.max_num_batched_tokens, 8):
        llm.add_request([1] * length, greedy(1))
        finish(llm)
    for context in (16, 600):  # prompts beside few and many others
        for batch in (1, 20):
            for _ in range(batch):
                llm.add_request([1] * context, greedy(200))
            while any(seq.num_uncomputed_tokens > 1 for seq in running(llm)) or llm.scheduler.waiting:
                llm.step()
            for length in (1, 2, 3, 6, 14, 40, 100, 200, 450):
                llm.step()
                llm.add_request([1] * length, greedy(1))
                llm.step()
            finish(llm)


def calibrate(llm: LLM, clock: Clock, quick: bool) -> list[Timed]:
    """Times of decodes, of prompts, and of steps that have both. The median of several steps, after some that do not
    count."""
    most, longest = llm.scheduler.max_num_seqs, llm.scheduler.max_num_batched_tokens
    batches = [batch for batch in ((1, 3, 8, 32) if quick else BATCHES) if batch <= most]
    points = [decode(llm, clock, batch, 32) for batch in batches]
    points += [decode(llm, clock, batch, context) for batch, context in ((1, 600), (8, 300), (32, 300))]
    points += [prompt(llm, clock, length) for length in PROMPTS if length <= longest]
    both = ((8, 24), (4, 64), (32, 64), (32, 256)) if most > 32 else ((8, 24), (4, 64))
    return [*points, *(mixed(llm, clock, batch, length) for batch, length in both)]


def decode(llm: LLM, clock: Clock, batch: int, context: int) -> Timed:
    for _ in range(batch):
        llm.add_request([1] * context, greedy(32))
    while llm.scheduler.waiting or any(seq.num_uncomputed_tokens > 1 for seq in running(llm)):
        llm.step()
    for _ in range(3):
        llm.step()
    times, tokens = [], 0.0
    for _ in range(16):
        begin = clock.now()
        llm.step()
        times.append(clock.now() - begin)
        tokens += sum(seq.num_computed_tokens for seq in running(llm)) / 16
    finish(llm)
    return Timed(Work(batch, batch, batch, round(tokens), round(tokens)), float(np.median(times)))


def mixed(llm: LLM, clock: Clock, batch: int, length: int) -> Timed:
    """A batch that decodes, and in every step another prompt, whose text has one token only."""
    for _ in range(batch):
        llm.add_request([1] * 32, greedy(40))
    times = []
    while len(times) < 24:
        llm.add_request([1] * length, greedy(1))
        begin = clock.now()
        llm.step()
        times.append(clock.now() - begin)
    tokens, pairs = batch * (32 + 16), length * (length + 1) // 2
    finish(llm)
    work = Work(batch + length, batch + 1, batch + 1, tokens + length, tokens + pairs)
    return Timed(work, float(np.median(times[8:])))


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)


def finish(llm: LLM) -> None:
    while llm.has_unfinished_requests():
        llm.step()


def running(llm: LLM) -> list[Any]:
    return [seq for group in llm.scheduler.running for seq in group.sequences]


def prompt(llm: LLM, clock: Clock, length: int) -> Timed:
    times = []
    for _ in range(REPEATS):
        llm.add_request([1] * length, greedy(1))
        begin = clock.now()
        finish(llm)
        times.append(clock.now() - begin)
    return Timed(Work(length, 1, 1, length, length * (length + 1) // 2), float(np.median(times)))


def fit(points: list[Timed], cost: CostModel) -> CostModel:
    """Bandwidth, arithmetic, and the host's times, to the least squared error in logs."""
    overheads = cost.overheads
    values = [cost.machine.bandwidth, cost.machine.flops, overheads.step, overheads.request, overheads.eager]
    best, factor = error_of(points, cost, values), 4.0
    while factor > 1.002:
        is_better = False
        for i in range(len(values)):
            for step in (factor, 1 / factor):
                tried = [value * (step if i == k else 1) for k, value in enumerate(values)]
                if (error := error_of(points, cost, tried)) < best:
                    values, best, is_better = tried, error, True
        if not is_better:
            factor = factor**0.5
    return with_constants(cost, values)


def error_of(points: list[Timed], cost: CostModel, values: list[float]) -> float:
    model = with_constants(cost, values)
    return float(sum(np.log(model.seconds(point.work) / point.seconds) ** 2 for point in points))


def with_constants(cost: CostModel, values: list[float]) -> CostModel:
    bandwidth, flops, step, request, eager = values
    machine: Machine = replace(cost.machine, bandwidth=bandwidth, flops=flops)
    overheads: Overheads = replace(cost.overheads, step=step, request=request, eager=eager)
    return replace(cost, machine=machine, overheads=overheads)
