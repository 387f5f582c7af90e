"""Lesson 14 in another style: turns as complex numbers, heads in a loop."""

import math

import numpy as np


def rotate(x, positions, theta=10_000.0):
    size = x.shape[2]
    frequencies = np.array([theta ** (-2 * i / size) for i in range(size // 2)])
    turns = np.exp(1j * np.outer(positions, frequencies))
    points = x[..., : size // 2] + 1j * x[..., size // 2 :]
    points = points * turns[:, None, :]
    return np.concatenate([points.real, points.imag], axis=2).astype(x.dtype)


def kv_head_of(head, num_heads, num_kv_heads):
    return head * num_kv_heads // num_heads


def grouped_attention(q, k_cache, v_cache, block_table, context_len):
    block_size, num_kv_heads = k_cache.shape[1:3]
    places = [(block_table[t // block_size], t % block_size) for t in range(context_len)]
    out = np.zeros(q.shape)
    for h in range(len(q)):
        own = kv_head_of(h, len(q), num_kv_heads)
        keys = np.array([k_cache[block, offset, own] for block, offset in places])
        values = np.array([v_cache[block, offset, own] for block, offset in places])
        scores = keys @ q[h] / math.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        out[h] = weights @ values / weights.sum()
    return out


def bytes_per_token(config, dtype):
    heads = config["num_attention_heads"]
    shared = config.get("num_key_value_heads", config.get("num_kv_heads", heads))
    if config.get("multi_query", False) and not config.get("new_decoder_architecture", False):
        shared = 1
    size = config.get("head_dim") or config["hidden_size"] // heads
    row = {"float32": 4 * size, "bfloat16": 2 * size, "float16": 2 * size}.get(dtype, size + 4)
    return 2 * config["num_hidden_layers"] * shared * row


def published_models():
    return {
        "OPT-13B": (40, 128, 819200, 655),
        "Llama-2-7B": (32, 128, 524288, 1024),
        "Falcon-7B": (1, 64, 8192, 65536),
        "Mistral-7B-v0.1": (8, 128, 131072, 4096),
        "Llama-3.1-8B": (8, 128, 131072, 4096),
        "Qwen2.5-7B": (4, 128, 57344, 9362),
    }


def move(k, by, theta=10_000.0):
    half = k.shape[-1] // 2
    angle = by * theta ** (-np.arange(half) / half)
    points = (k[..., :half] + 1j * k[..., half:]) * np.exp(1j * angle)
    return np.concatenate((points.real, points.imag), axis=-1)
