"""Lesson 13, solved."""

from __future__ import annotations


def percentile(values: list[float], percent: float) -> float:
    if not values:
        raise ValueError("no values have no percentile.")
    values = sorted(values)
    place = (len(values) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def throughput(served) -> float:
    seconds = max(request.finished for request in served) - min(request.arrival for request in served)
    return sum(request.num_tokens for request in served) / seconds


def normalised_latency(served) -> float:
    return sum((request.finished - request.arrival) / request.num_tokens for request in served) / len(served)


def capacity(memory: int, bytes_per_token: int, block_size: int, num_tokens: int) -> int:
    num_blocks = memory // (bytes_per_token * block_size)
    return num_blocks // -(-num_tokens // block_size)


def histogram_percentile(buckets, percent: float) -> float:
    total = buckets[-1][1]
    if not total:
        raise ValueError("no values have no percentile.")
    wanted = total * percent / 100
    low = passed = 0
    for high, count in buckets:
        if count >= wanted:
            return low if high == float("inf") else low + (high - low) * (wanted - passed) / (count - passed)
        low, passed = high, count
    raise AssertionError("the last bucket holds all values")


LATENCY = "vllm:e2e_request_latency_seconds"


def littles_law(before, after, seconds: float) -> tuple[float, float, float]:
    ended = after[LATENCY + "_count"] - before[LATENCY + "_count"]
    took = after[LATENCY + "_sum"] - before[LATENCY + "_sum"]
    if not ended:
        return 0.0, 0.0, 0.0
    rate, mean_time = ended / seconds, took / ended
    return rate, mean_time, rate * mean_time
