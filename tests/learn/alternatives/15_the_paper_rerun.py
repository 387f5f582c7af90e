"""Lesson 15 in another style: NumPy, and everything worked out in place."""

import numpy as np


def bytes_read(num_parameters, bytes_per_parameter, kv_bytes_per_token, context_lens):
    tokens = np.array(context_lens, np.int64).sum()
    return num_parameters * bytes_per_parameter + int(tokens) * kv_bytes_per_token


def step_seconds(num_parameters, bytes_per_parameter, kv_bytes_per_token, context_lens, bandwidth, flops):
    weights = num_parameters * bytes_per_parameter
    reading = (weights + sum(context_lens) * kv_bytes_per_token) / bandwidth
    operations = 2 * num_parameters * len(context_lens)
    return float(np.maximum(reading, operations / flops))


def sustained_rate(num_slots, tokens_held, seconds_per_step, num_output_tokens):
    return num_slots / tokens_held / seconds_per_step / num_output_tokens
