"""Lesson 15: the cost of a decode step. Replace each `raise NotImplementedError(...)` by code of yours.

In a decode step every sequence computes one token. `context_lens` has, for each of them (there is at least one), how
many tokens its attention looks at; the list stays as it is. Bandwidth is in bytes a second, `flops` in additions and
multiplications a second. Results are numbers of any kind, not rounded.
"""

from __future__ import annotations


def bytes_read(
    num_parameters: int,
    bytes_per_parameter: float,
    kv_bytes_per_token: int,
    context_lens: list[int],
) -> float:
    """Exercise 15.1: how many bytes the memory has to deliver in the step.

    All weights, once, for however many sequences; and K and V of every token that is looked at.

    bytes_read(1000, 2, 10, [5, 7]) is 2120.
    """
    raise NotImplementedError(
        "Exercise 15.1: the weights once, and K and V of every context"
    )


def step_seconds(
    num_parameters: int,
    bytes_per_parameter: float,
    kv_bytes_per_token: int,
    context_lens: list[int],
    bandwidth: float,
    flops: float,
) -> float:
    """Exercise 15.2: how long the step takes, if reading and computing overlap perfectly: the longer of the two.

    Each sequence's token is multiplied with every parameter: one multiplication and one addition each. What attention
    computes is left out, because it is little beside what it reads.

    step_seconds(1000, 2, 10, [5, 7], bandwidth=100, flops=1000) is 21.2, and with flops=100 it is 40.
    """
    raise NotImplementedError(
        "Exercise 15.2: bytes / bandwidth or operations / flops, whichever is longer"
    )


def sustained_rate(
    num_slots: int,
    tokens_held: float,
    seconds_per_step: float,
    num_output_tokens: float,
) -> float:
    """Exercise 15.3: how many requests a second a server can sustain, if memory is what limits it.

    `num_slots` tokens fit into the KV cache, and a running request holds `tokens_held` of them on average. A request
    runs for `num_output_tokens` steps of `seconds_per_step` each. Parts of a request count: 2.5 may run at a time.

    sustained_rate(1000, 100, 0.05, 200) is 1.0: ten run at a time, for ten seconds each.
    """
    raise NotImplementedError(
        "Exercise 15.3: how many run at a time / how long each of them runs"
    )
