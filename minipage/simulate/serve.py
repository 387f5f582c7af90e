"""Serve arrivals on the virtual clock with one way to manage memory, and say how it went.

arrivals ──▶ SimulatedEngine ──▶ Tally ──▶ Report
                  │ step by step; when nobody is there, the clock jumps to the next arrival
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Literal, NamedTuple

from minipage.engine.request import NextToken, Request
from minipage.engine.windows import kinds_of_sequences, make_prefix_cache
from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.memory import BlockPool, BlockTable
from minipage.memory.kv_groups import KVGroups
from minipage.scheduling import Preemption, Scheduler, SequenceGroup, StepPlan
from minipage.scheduling.first_chunk import scheduler_for
from minipage.simulate.baselines import reserve_max, reserve_oracle, reserve_pow2
from minipage.simulate.cost import CostModel, Work
from minipage.simulate.reserving import ReservingPool, ReservingScheduler, static_batches
from minipage.simulate.stand_in import Clock, Histogram, SimulatedEngine, SimulatedOverlap, StandInIntake, StandInRunner
from minipage.simulate.workload import Arrival

Memory = Literal["paged", "oracle", "pow2", "max", "static"]
RULES = {"oracle": reserve_oracle, "pow2": reserve_pow2, "max": reserve_max}
TITLES = {
    "paged": "vLLM", "oracle": "Orca (Oracle)", "pow2": "Orca (Pow2)", "max": "Orca (Max)",
    "static": "FasterTransformer",
}  # fmt: skip  # the paper's names


@dataclass(frozen=True)
class Setting:
    """A system to be simulated."""

    cost: CostModel
    num_slots: int  # tokens that the KV cache holds; with windows, of one group of layers
    memory: Memory = "paged"
    block_size: int = 16
    max_model_len: int = 2048
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    preemption: Preemption = "recompute"
    watermark: float = 0.01  # vLLM's at the time of the paper
    scheduler_reserve_full_isl: bool = True
    enable_prefix_caching: bool = False
    num_swap_blocks: int = 0  # 0: as many as the pool has, if anything is swapped


@dataclass
class Report:
    """How a simulation went. Times in seconds on the virtual clock."""

    num_requests: int = 0
    num_refused: int = 0  # could never fit
    num_tokens: int = 0  # generated
    num_steps: int = 0
    num_preemptions: int = 0
    seconds: float = 0.0  # from the beginning to the last token
    mean_batch: float = math.nan  # requests computed at a time, over the time in which requests came
    mean_used: float = math.nan  # share of the slots that are held, over the same time
    saved: float = math.nan  # blocks that sharing saves, of those that there would be without
    normalized_latency: float = math.nan  # mean of each request's latency divided by its output tokens
    latency: Histogram = field(default_factory=Histogram)
    time_to_first_token: Histogram = field(default_factory=Histogram)
    time_per_output_token: Histogram = field(default_factory=Histogram)
    timeline: list[Moment] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def numbers(self) -> dict[str, float]:
        """For JSON."""
        return {
            "requests": self.num_requests,
            "refused": self.num_refused,
            "tokens": self.num_tokens,
            "steps": self.num_steps,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "mean_batch": self.mean_batch,
            "mean_used": self.mean_used,
            "saved": self.saved,
            "preemptions": self.num_preemptions,
            "normalized_latency": self.normalized_latency,
            "latency_mean": self.latency.mean,
            "time_to_first_token_median": self.time_to_first_token.quantile(0.5),
            "time_to_first_token_p99": self.time_to_first_token.quantile(0.99),
            "time_per_output_token_mean": self.time_per_output_token.mean,
        }


class Moment(NamedTuple):
    """A step, for a picture."""

    time: float
    running: int  # requests
    waiting: int
    used: float  # share of the pool


class Tally:
    """Counts on the virtual clock; has the face of the engine's Stats. Nothing is kept of a request that is done."""

    def __init__(self, clock: Clock, keep: int = 0) -> None:
        self.clock = clock
        self.keep = keep  # moments to keep, at most
        self.report = Report()
        self.scheduler: Scheduler | None = None  # whose pool is looked at
        self.is_open = True  # while requests come: only then are batch and memory averaged
        self.warm = 0.0  # from this time on
        self._time = self._batch = self._used = 0.0
        self._normalized = 0.0
        self._logical = self._physical = 0

    def on_step(self, plan: StepPlan, work: Work, seconds: float) -> None:
        """The runner calls this in the middle of a step: tokens have slots, and no request has finished in it yet."""
        scheduler = self.scheduler
        assert scheduler is not None
        running = scheduler.running
        self.report.num_steps += 1
        if self.keep:
            self._remember(scheduler)
        if self.report.num_steps % 16 == 0:  # a sample is enough, and it is not cheap
            self._count_sharing(scheduler)
        if not self.is_open or self.clock.now < self.warm:
            return
        self._time += seconds
        self._batch += len(running) * seconds
        pool = scheduler.block_pool
        self._used += seconds * used_share(pool)

    def count_step(self, plan: StepPlan) -> None:
        self.report.num_preemptions += len(plan.preempted)

    def count_tokens(self, tokens: dict[Request, list[NextToken]]) -> None:
        self.report.num_tokens += sum(map(len, tokens.values()))

    def count_request(self, request: Request) -> None:
        times = request.metrics
        arrival: Arrival = request.arrival  # type: ignore[attr-defined]
        if times.finished_time is not None and times.first_token_time is not None:
            self.count_times(arrival, times.first_token_time, times.finished_time)

    def count_times(self, arrival: Arrival, first_token_time: float, finished_time: float) -> None:
        report, num_tokens = self.report, arrival.num_output_tokens
        report.num_requests += 1
        latency = finished_time - arrival.time
        self._normalized += latency / num_tokens
        report.latency.add(latency)
        report.time_to_first_token.add(first_token_time - arrival.time)
        if num_tokens > 1:
            report.time_per_output_token.add((finished_time - first_token_time) / (num_tokens - 1))

    def close(self) -> Report:
        report = self.report
        report.seconds = self.clock.now
        if self._time:
            report.mean_batch = self._batch / self._time
            report.mean_used = self._used / self._time
        if self._logical:
            report.saved = 1 - self._physical / self._logical
        if report.num_requests:
            report.normalized_latency = self._normalized / report.num_requests
        return report

    def _count_sharing(self, scheduler: Scheduler) -> None:
        for group in scheduler.running:
            if group.max_num_seqs > 1 and not group.is_sharing:
                self._logical += sum(len(seq.block_table) for seq in group.sequences)
                self._physical += group.num_blocks

    def _remember(self, scheduler: Scheduler) -> None:
        if len(self.report.timeline) < self.keep:
            waiting = len(scheduler.groups) - len(scheduler.running)
            moment = Moment(self.clock.now, len(scheduler.running), waiting, used_share(scheduler.block_pool))
            self.report.timeline.append(moment)


def used_share(pool: BlockPool) -> float:
    if isinstance(pool, ReservingPool):
        return 1 - pool.allocator.num_free / pool.num_blocks
    return pool.num_used / pool.num_blocks


def build(setting: Setting, clock: Clock, tally: Tally, with_content: bool = False) -> SimulatedEngine:
    """The engine of a setting, made of the real parts."""
    sizes = setting.max_num_seqs, setting.max_num_batched_tokens
    layers = setting.cost.sizes
    groups = KVGroups.of(layers.num_layers, layers.windows)
    new_table, group = kinds_of_sequences(groups, BlockTable, setting.max_num_batched_tokens)
    if setting.memory == "paged":
        num_blocks = setting.num_slots // setting.block_size
        if num_blocks < 1:
            raise ConfigurationError(
                f"a block of {setting.block_size} slots does not fit into a memory of {setting.num_slots}. Give more."
            )
        pool = BlockPool(num_blocks, setting.block_size)
        swaps = setting.preemption != "recompute"
        swap_pool = BlockPool(setting.num_swap_blocks or num_blocks, setting.block_size) if swaps else None
        scheduler = scheduler_for(None, setting.scheduler_reserve_full_isl)(
            pool, *sizes, prefix_cache=make_prefix_cache(pool, groups) if setting.enable_prefix_caching else None,
            swap_pool=swap_pool, preemption=setting.preemption, watermark=setting.watermark,
        )  # fmt: skip

        def make_table(arrival: Arrival) -> Callable[[], BlockTable]:
            return lambda: new_table(pool)
    else:
        group = SequenceGroup  # where nothing is given back before the end
        places = ReservingPool(setting.num_slots, RULES[setting.memory], setting.max_model_len)
        scheduler = ReservingScheduler(places, *sizes)
        make_table = places.table_of
    tally.scheduler = scheduler
    runner = StandInRunner(setting.cost, clock, tally.on_step)
    if setting.memory != "paged":
        runner = CopyingRunner(setting.cost, clock, tally.on_step, places)
    intake = StandInIntake(clock, setting.max_model_len, make_table, with_content, group)
    engine = SimulatedEngine(runner, scheduler, intake, tally)
    if setting.cost.overheads.overlaps:
        SimulatedOverlap(engine)  # which takes the place of the engine's steps
    return engine


class CopyingRunner(StandInRunner):
    """Where nothing is shared, who forks copies all that it has."""

    def __init__(self, cost: CostModel, clock: Clock, on_step: Callable[..., object], pool: ReservingPool) -> None:
        super().__init__(cost, clock, on_step)
        self.places = pool

    def copy(self, plan: StepPlan) -> None:
        tokens, self.places.num_copied_tokens = self.places.num_copied_tokens, 0
        if tokens:
            self.clock.now += self.cost.copies(1) * tokens / self.cost.block_size


def serve(
    setting: Setting,
    arrivals: Iterable[Arrival],
    *,
    warm: float = 0.0,
    keep: int = 0,
    on_finish: Callable[[int], object] | None = None,
    give_up: Callable[[Report, float], bool] | None = None,
) -> Report:
    """Serve all arrivals, which come in the order of their times.

    Args:
        warm: batch and memory are averaged from this time on, and as long as requests come.
        keep: how many moments of it to keep for a picture.
        on_finish: is told how many have finished, now and then.
        give_up: whether to stop before the end, given the report so far and the time.
    """
    clock = Clock()
    tally = Tally(clock, keep)
    tally.warm = warm
    if setting.memory == "static":
        return serve_static(setting, arrivals, tally)
    engine = build(setting, clock, tally, setting.enable_prefix_caching)
    coming = iter(arrivals)
    following = next(coming, None)
    names, num_told = count(), 0
    while following is not None or engine.requests:
        if not engine.requests and following is not None:
            clock.now = max(clock.now, following.time)
        while following is not None and following.time <= clock.now:
            try:
                engine.add_request(following, None, str(next(names)))  # type: ignore[arg-type]
            except InvalidRequestError:
                tally.report.num_refused += 1
            following = next(coming, None)
        tally.is_open = following is not None
        if engine.requests:
            engine.advance()
        if on_finish and tally.report.num_requests >= num_told + 100:
            num_told = tally.report.num_requests
            on_finish(num_told)
        if give_up and give_up(tally.report, clock.now):
            break
    return tally.close()


def serve_static(setting: Setting, arrivals: Iterable[Arrival], tally: Tally) -> Report:
    """In batches as large as the memory allows when each request may become as long as the model can."""
    batch_size = min(setting.max_num_seqs, setting.num_slots // setting.max_model_len)
    if batch_size < 1:
        raise ConfigurationError(f"{setting.num_slots} slots hold no text of {setting.max_model_len} tokens.")
    busy = 0.0
    for done in static_batches(arrivals, batch_size, setting.cost):
        tally.report.num_tokens += done.arrival.num_output_tokens
        tally.count_times(done.arrival, done.finished_time, done.finished_time)
        tally.clock.now = done.finished_time
        busy += done.finished_time - done.first_token_time
    report = tally.close()
    report.mean_batch = busy / report.seconds if report.seconds else math.nan
    return report


def with_block_size(setting: Setting, block_size: int) -> Setting:
    return replace(setting, block_size=block_size, cost=replace(setting.cost, block_size=block_size))


def capacity(setting: Setting, arrivals: Iterable[Arrival], num_requests: int, num_warm: int | None = None) -> float:
    """Requests a second that it serves when there are always more waiting: the rate at which waiting times explode.

    Of `num_requests` the first ones warm up, a fifth of them if not said, and after the last nothing is measured: so
    the batch never runs empty.
    """
    first = num_requests // 5 if num_warm is None else num_warm
    queue = islice((arrival._replace(time=0.0) for arrival in arrivals), num_requests + 4 * setting.max_num_seqs)
    times: list[float] = []

    def note(report: Report, now: float) -> bool:
        if report.num_requests >= first and not times:
            times.extend([now, report.num_requests])
        return report.num_requests >= num_requests

    report = serve(setting, queue, give_up=note, keep=0)
    if setting.memory == "static":
        return report.num_requests / report.seconds
    return (report.num_requests - times[1]) / (report.seconds - times[0])
