"""What an engine has done, counted: the numbers of `LLM.stats()`, and of a server's /metrics.

Names, kinds, labels and buckets are those of vLLM 0.32.0, so that dashboards and load testers made for it understand
them. Counters get `_total` at the end of their names when Prometheus fetches them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from minipage.engine.request import NextToken, Request, RequestMetrics
from minipage.scheduling import Scheduler, StepPlan

FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
NEXT_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
STEP = tuple(float(2**i) for i in (0, *range(3, 15)))  # 1, 8, 16, ... 16,384 tokens
LENGTH = ()  # 1, 2, 5, 10, ... up to the longest sequence that the engine allows


class Metric(NamedTuple):
    name: str
    kind: Literal["gauge", "counter", "histogram", "info"]
    meaning: str
    buckets: tuple[float, ...] = LENGTH  # upper bounds, of a histogram


METRICS = (
    Metric("vllm:num_requests_running", "gauge", "requests that have blocks and are computed"),
    Metric("vllm:num_requests_waiting", "gauge", "requests that wait for their turn, preempted ones too"),
    Metric("vllm:kv_cache_usage_perc", "gauge", "share of the pool's blocks in use, from 0 to 1"),
    Metric("vllm:cache_config_info", "info", "how the KV cache was set up, in labels"),
    Metric("vllm:prefix_cache_queries", "counter", "prompt tokens that were looked for in the prefix cache"),
    Metric("vllm:prefix_cache_hits", "counter", "those of them that were found"),
    Metric("vllm:num_preemptions", "counter", "times that a request lost its blocks to make room"),
    Metric("vllm:prompt_tokens", "counter", "tokens of prompts, counted when the first token after them is known"),
    Metric("vllm:prompt_tokens_cached", "counter", "those of them that the prefix cache knew"),
    Metric("vllm:generation_tokens", "counter", "tokens generated"),
    Metric("vllm:request_success", "counter", "requests that ended, by finished_reason"),
    Metric("vllm:time_to_first_token_seconds", "histogram", "from arrival to the first token", FIRST_TOKEN),
    Metric("vllm:inter_token_latency_seconds", "histogram", "from one token of a request to the next", NEXT_TOKEN),
    Metric("vllm:request_time_per_output_token_seconds", "histogram", "the same, averaged per request", NEXT_TOKEN),
    Metric("vllm:e2e_request_latency_seconds", "histogram", "from arrival to the end", REQUEST),
    Metric("vllm:request_queue_time_seconds", "histogram", "from arrival until it is first scheduled", REQUEST),
    Metric("vllm:request_inference_time_seconds", "histogram", "from there to the end", REQUEST),
    Metric("vllm:request_prefill_time_seconds", "histogram", "from there to the first token", REQUEST),
    Metric("vllm:request_decode_time_seconds", "histogram", "from the first token to the end", REQUEST),
    Metric("vllm:request_prompt_tokens", "histogram", "tokens of a prompt"),
    Metric("vllm:request_generation_tokens", "histogram", "tokens generated for a request"),
    Metric("vllm:request_max_num_generation_tokens", "histogram", "tokens of its longest text"),
    Metric("vllm:request_params_n", "histogram", "texts that a request asks for", (1, 2, 5, 10, 20)),
    Metric("vllm:request_params_max_tokens", "histogram", "tokens that it asks for"),
    Metric("vllm:iteration_tokens_total", "histogram", "tokens computed in a step", STEP),
    Metric("vllm:request_num_preemptions", "histogram", "times that it was preempted", (1, 2, 3, 4, 5, 10, 20)),
)
FINISHED_REASONS = "stop", "length", "abort", "error"


@dataclass(frozen=True)
class Histogram:
    buckets: tuple[float, ...]  # upper bounds; the last is infinite
    counts: tuple[int, ...]  # how many values fell into each bucket, and into none before it
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class Stats:
    """Counts for one engine, which counts in its steps.

    Any thread may look at any time, and waits for nobody: there is no lock, because an interrupt in the wrong place
    would leave it locked. What is seen in the middle of a step may lack the last of a value's fellows.
    """

    def __init__(self, longest: int) -> None:
        bounds = {metric.name: metric.buckets or lengths_up_to(longest) for metric in METRICS}
        self._buckets = {m.name: (*bounds[m.name], float("inf")) for m in METRICS if m.kind == "histogram"}
        self._last_token_times: dict[Request, float] = {}  # of those under way, whether counted anew or not
        self._begin()

    def reset(self, scheduler: Scheduler) -> None:
        """Count anew, what the scheduler counts too."""
        self._begin()
        scheduler.num_queried_tokens = scheduler.num_hit_tokens = 0

    def _begin(self) -> None:
        self._counts = {name: [0] * len(buckets) for name, buckets in self._buckets.items()}
        self._sums = dict.fromkeys(self._buckets, 0.0)
        self.counters = Counter({metric.name: 0 for metric in METRICS if metric.kind == "counter"})  # others add theirs
        self._ended = Counter(dict.fromkeys(FINISHED_REASONS, 0))

    def count_step(self, plan: StepPlan) -> None:
        """A step has computed its chunks, if it has any: it may only have preempted somebody."""
        self.counters["vllm:num_preemptions"] += len(plan.preempted)
        if plan.chunks:
            self._observe("vllm:iteration_tokens_total", sum(chunk.num_tokens for chunk in plan.chunks))

    def count_tokens(self, tokens: dict[Request, list[NextToken]]) -> None:
        """A step has given requests their next tokens."""
        now = time.perf_counter()
        self.counters["vllm:generation_tokens"] += sum(map(len, tokens.values()))
        times: Counter[Any] = Counter(map(self._last_token_times.get, tokens))  # usually one, of the step before
        num_new = times.pop(None, 0)
        for last, num_requests in times.items():
            self._observe("vllm:inter_token_latency_seconds", now - last, num_requests)
        for request in tokens.keys() - self._last_token_times.keys() if num_new else ():
            self.counters["vllm:prompt_tokens"] += len(request.prompt_token_ids)
            self.counters["vllm:prompt_tokens_cached"] += request.group.num_cached_tokens
            self._observe("vllm:time_to_first_token_seconds", now - request.metrics.arrival_time)
        self._last_token_times |= dict.fromkeys(tokens, now)

    def count_request(self, request: Request) -> None:
        """A request has ended."""
        texts, params, metrics = request.completions(), request.params, request.metrics
        lengths = [len(text.token_ids) for text in texts]
        self._last_token_times.pop(request, None)
        self._ended[request.ended_by or texts[0].finish_reason or "stop"] += 1
        self._observe("vllm:request_prompt_tokens", len(request.prompt_token_ids))
        self._observe("vllm:request_generation_tokens", sum(lengths))
        self._observe("vllm:request_max_num_generation_tokens", max(lengths))
        self._observe("vllm:request_params_n", params.n)
        if params.max_tokens is not None:
            self._observe("vllm:request_params_max_tokens", params.max_tokens)
        self._observe("vllm:request_num_preemptions", metrics.num_preemptions)
        self._count_times(metrics, max(lengths))

    def _count_times(self, metrics: RequestMetrics, num_tokens: int) -> None:
        """How long each part of a request's life took: as far as it came."""
        arrival, end = metrics.arrival_time, metrics.finished_time
        scheduled, first = metrics.first_scheduled_time, metrics.first_token_time
        assert end is not None, "it has ended"
        self._observe("vllm:e2e_request_latency_seconds", end - arrival)
        if scheduled is not None:
            self._observe("vllm:request_queue_time_seconds", scheduled - arrival)
            self._observe("vllm:request_inference_time_seconds", end - scheduled)
        if scheduled is not None and first is not None:
            self._observe("vllm:request_prefill_time_seconds", first - scheduled)
            self._observe("vllm:request_decode_time_seconds", end - first)
        if first is not None and num_tokens > 1:
            self._observe("vllm:request_time_per_output_token_seconds", (end - first) / (num_tokens - 1))

    def look(self, scheduler: Scheduler) -> dict[str, Any]:
        """All there is, by name: a number; of a histogram a Histogram; of request_success a number for each reason; of
        cache_config_info the settings."""
        pool = scheduler.block_pool
        running = len(scheduler.running)
        numbers: dict[str, Any] = {
            "vllm:num_requests_running": running,
            "vllm:num_requests_waiting": max(0, len(scheduler.groups) - running),
            "vllm:kv_cache_usage_perc": pool.num_used / pool.num_blocks,
            "vllm:cache_config_info": cache_config(scheduler),
            **self.counters,
            "vllm:prefix_cache_queries": scheduler.num_queried_tokens,
            "vllm:prefix_cache_hits": scheduler.num_hit_tokens,
            "vllm:request_success": dict(self._ended),
        }
        for name, buckets in self._buckets.items():
            numbers[name] = Histogram(buckets, tuple(self._counts[name]), self._sums[name])
        return {metric.name: numbers[metric.name] for metric in METRICS}

    def _observe(self, name: str, value: float, count: int = 1) -> None:
        """The same value, this many times."""
        self._counts[name][bisect_left(self._buckets[name], value)] += count
        self._sums[name] += count * value


def cache_config(scheduler: Scheduler) -> dict[str, str]:
    pool, swap_pool = scheduler.block_pool, scheduler.swap_pool
    settings = {
        "block_size": pool.block_size,
        "num_gpu_blocks": pool.num_blocks,
        "num_cpu_blocks": swap_pool.num_blocks if swap_pool else 0,
        "enable_prefix_caching": scheduler.prefix_cache is not None,
    }
    return {name: str(value) for name, value in settings.items()}


def lengths_up_to(longest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50, ... as far as `longest`."""
    numbers = [digit * 10**power for power in range(len(str(longest))) for digit in (1, 2, 5)]
    return tuple(float(number) for number in numbers if number <= longest)
