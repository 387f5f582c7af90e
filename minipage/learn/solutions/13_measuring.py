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


class Router:
    def __init__(self, block_size: int, most_ahead: int) -> None:
        self.block_size = block_size
        self.most_ahead = most_ahead
        self.hash_at = {}  # (server, parent, tokens) -> the block's hash
        self.place_of = {}  # (server, hash) -> the key of that block above

    def stored(self, server: str, block_hash: int, parent: int | None, token_ids: list[int]) -> None:
        place = server, parent, tuple(token_ids)
        self.hash_at[place] = block_hash
        self.place_of[server, block_hash] = place

    def removed(self, server: str, block_hash: int) -> None:
        del self.hash_at[self.place_of.pop((server, block_hash))]

    def choose(self, token_ids: list[int], loads: dict[str, int]) -> str:
        limit = min(loads.values()) + self.most_ahead
        able = [server for server in sorted(loads) if loads[server] <= limit]
        return max(able, key=lambda server: (self.num_known(server, token_ids), -loads[server]))

    def num_known(self, server: str, token_ids: list[int]) -> int:
        """How many blocks of the beginning a server has."""
        parent, known = None, 0
        for start in range(0, len(token_ids) - self.block_size + 1, self.block_size):
            place = server, parent, tuple(token_ids[start : start + self.block_size])
            if place not in self.hash_at:
                break
            parent, known = self.hash_at[place], known + 1
        return known
