"""Lesson 15, solved."""

from __future__ import annotations


def bytes_read(
    num_parameters: int, bytes_per_parameter: float, kv_bytes_per_token: int, context_lens: list[int]
) -> float:
    return num_parameters * bytes_per_parameter + kv_bytes_per_token * sum(context_lens)


def step_seconds(
    num_parameters: int,
    bytes_per_parameter: float,
    kv_bytes_per_token: int,
    context_lens: list[int],
    bandwidth: float,
    flops: float,
) -> float:
    reading = bytes_read(num_parameters, bytes_per_parameter, kv_bytes_per_token, context_lens) / bandwidth
    computing = 2 * num_parameters * len(context_lens) / flops
    return max(reading, computing)


def sustained_rate(num_slots: int, tokens_held: float, seconds_per_step: float, num_output_tokens: float) -> float:
    running = num_slots / tokens_held
    return running / (seconds_per_step * num_output_tokens)
