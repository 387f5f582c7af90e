"""Lesson 15 in a third style: fractions, and loops that count."""

from fractions import Fraction


def bytes_read(num_parameters, bytes_per_parameter, kv_bytes_per_token, context_lens):
    total = Fraction(bytes_per_parameter) * num_parameters
    for length in context_lens:
        total += length * kv_bytes_per_token
    return total


def step_seconds(num_parameters, bytes_per_parameter, kv_bytes_per_token, context_lens, bandwidth, flops):
    operations = 0
    for _ in context_lens:
        operations += num_parameters + num_parameters
    times = [
        bytes_read(num_parameters, bytes_per_parameter, kv_bytes_per_token, context_lens) / Fraction(bandwidth),
        Fraction(operations) / Fraction(flops),
    ]
    return sorted(times)[-1]


def sustained_rate(num_slots, tokens_held, seconds_per_step, num_output_tokens):
    slot_seconds = Fraction(tokens_held) * Fraction(seconds_per_step) * Fraction(num_output_tokens)
    return num_slots / slot_seconds
