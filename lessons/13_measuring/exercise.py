"""Lesson 13: measuring a server. Replace each `raise NotImplementedError(...)` by code of yours.

A request that was served is four numbers; times are in seconds, of one clock, which need not begin at 0. Lists come in
any order, and stay as they are; of requests there is at least one. Results are numbers of any kind, not rounded.
"""

from __future__ import annotations

from typing import NamedTuple


class Served(NamedTuple):
    arrival: float  # when the request came
    first_token: float  # when its first token went out
    finished: float  # when its last token went out
    num_tokens: int  # how many tokens went out, at least 1


def percentile(values: list[float], percent: float) -> float:
    """Exercise 13.1: the value that `percent` % (0 to 100) of the values do not exceed, with linear interpolation.

    Sorted, the first value is the 0th percentile and the last one the 100th, and the others lie evenly between. What
    falls between two of them is taken from the line that joins them: percentile([10, 20], 50) is 15.

    Raises ValueError if there are no values.
    """
    raise NotImplementedError("Exercise 13.1: sort, find the place, interpolate")


def throughput(served: list[Served]) -> float:
    """Exercise 13.2: tokens a second, of all requests together: from the first arrival to the last token."""
    raise NotImplementedError("Exercise 13.2: all tokens / all the time it took")


def normalised_latency(served: list[Served]) -> float:
    """Exercise 13.3: the mean over requests of (time from arrival to the last token) / (tokens of that request).

    It is the measure of the PagedAttention paper (section 6.1): seconds a token as somebody waiting feels them.
    """
    raise NotImplementedError(
        "Exercise 13.3: of each request its own seconds a token, then the mean"
    )


def capacity(
    memory: int, bytes_per_token: int, block_size: int, num_tokens: int
) -> int:
    """Exercise 13.4: how many requests of `num_tokens` tokens fit into `memory` bytes of KV cache at a time.

    The memory is cut into whole blocks of `block_size` tokens, and every request takes whole blocks. A whole number
    comes back.

    capacity(memory=1000, bytes_per_token=10, block_size=16, num_tokens=20) is 3: 6 blocks, and 2 for each request.
    """
    raise NotImplementedError(
        "Exercise 13.4: blocks there are / blocks that a request takes, whole numbers only"
    )


def histogram_percentile(buckets: list[tuple[float, int]], percent: float) -> float:
    """Exercise 13.5: a percentile (above 0, up to 100) of values that /metrics tells only as a histogram.

    Each bucket is (upper bound, how many values of all do not exceed it); bounds rise from above 0, and the last one is
    infinite. The first bucket begins at 0, each other one where the one before it ends, and the values of a bucket are
    taken to lie evenly in it. The percentile is where `percent` % of all values have been passed. If that is in the last
    bucket, nothing is known but the bound before it: return that.

    histogram_percentile([(0.1, 6), (0.3, 10), (inf, 10)], 80) is 0.2: 8 values, which is 6 and half of the next 4.

    Raises ValueError if there are no values.
    """
    raise NotImplementedError(
        "Exercise 13.5: which bucket holds that value, and how far is it into the bucket?"
    )


LATENCY = "vllm:e2e_request_latency_seconds"  # of requests that ended, from arrival to the end


def littles_law(
    before: dict[str, float], after: dict[str, float], seconds: float
) -> tuple[float, float, float]:
    """Exercise 13.6: how busy a server was between two looks at its /metrics, which are `seconds` seconds apart.

    `before` and `after` are numbers by name. Among them are LATENCY + "_count", how many requests have ended since the
    server was started, and LATENCY + "_sum", the seconds that all of those took together.

    Returns three numbers: how many requests ended a second between the looks, how many seconds each of them took on
    average, and, by Little's law, how many were inside at a time. If none ended, all three are 0.
    """
    raise NotImplementedError(
        "Exercise 13.6: what was added between the looks; rate, mean time, and rate x time"
    )


class Router:
    """Exercise 13.7: which of several servers gets a request, if each has a prefix cache of its own.

    A server tells of each full block that it stores and removes. A block has a hash, which means something on that
    server only: two servers may use one hash for different texts.
    """

    def __init__(self, block_size: int, most_ahead: int) -> None:
        raise NotImplementedError(
            "Exercise 13.7: keep the two numbers, and make a place for what the servers tell"
        )

    def stored(
        self, server: str, block_hash: int, parent: int | None, token_ids: list[int]
    ) -> None:
        """`server` has a block of `block_size` tokens, which follows the block `parent`; None: a text begins with it.

        It may be told of a block before it is told of its parent.
        """
        raise NotImplementedError(
            "Exercise 13.7: by what will you look for this block, when a prompt comes?"
        )

    def removed(self, server: str, block_hash: int) -> None:
        """`server` does not have this block any more. It still has those that follow it, and may store it again."""
        raise NotImplementedError(
            "Exercise 13.7: the hash is all that is told; where is its block?"
        )

    def choose(self, token_ids: list[int], loads: dict[str, int]) -> str:
        """The server for a prompt, one of those in `loads`, which says how many requests each is busy with.

        A server is overloaded if it has more than `most_ahead` requests more than the one that has the fewest. Of the
        others, the one that has the most blocks of the prompt's beginning, without a gap; among equals the one with
        fewer requests; and then the one whose name comes first in the alphabet.
        """
        raise NotImplementedError(
            "Exercise 13.7: who is not overloaded, and how far can each be followed along the prompt?"
        )
