"""Lesson 14 in a third style: a matrix for each turn, K and V repeated for all heads, one pass over the blocks."""

import numpy as np


def turning(position, size, theta):
    """[D, D]"""
    half = size // 2
    matrix = np.zeros((size, size))
    for i in range(half):
        angle = position / theta ** (2 * i / size)
        matrix[i, i] = matrix[i + half, i + half] = np.cos(angle)
        matrix[i + half, i] = np.sin(angle)
        matrix[i, i + half] = -matrix[i + half, i]
    return matrix


def rotate(x, positions, theta=10_000.0):
    return np.stack([row @ turning(int(p), x.shape[2], theta).T for row, p in zip(x, positions)])


def kv_head_of(head, num_heads, num_kv_heads):
    return int(np.repeat(np.arange(num_kv_heads), num_heads // num_kv_heads)[head])


def grouped_attention(q, k_cache, v_cache, block_table, context_len):
    block_size, repeats = k_cache.shape[1], len(q) // k_cache.shape[2]
    highest = np.full(len(q), -np.inf)
    total, mean = np.zeros(len(q)), np.zeros(q.shape)
    for start in range(0, context_len, block_size):
        block, filled = block_table[start // block_size], min(block_size, context_len - start)
        k = np.repeat(k_cache[block, :filled], repeats, axis=1)
        v = np.repeat(v_cache[block, :filled], repeats, axis=1)
        scores = np.einsum("hd,nhd->hn", q, k) * q.shape[1] ** -0.5
        now = np.maximum(highest, scores.max(axis=1))
        weights, smaller = np.exp(scores - now[:, None]), np.exp(highest - now)
        total = total * smaller + weights.sum(axis=1)
        mean = mean * smaller[:, None] + np.einsum("hn,nhd->hd", weights, v)
        highest = now
    return mean / total[:, None]


def bytes_per_token(config, dtype):
    match config:
        case {"multi_query": True, "new_decoder_architecture": False}:
            kv_heads = 1
        case {"multi_query": True} if "new_decoder_architecture" not in config:
            kv_heads = 1
        case {"num_key_value_heads": int(kv_heads)} | {"num_kv_heads": int(kv_heads)}:
            pass
        case _:
            kv_heads = config["num_attention_heads"]
    match config:
        case {"head_dim": int(size)}:
            pass
        case _:
            size = config["hidden_size"] // config["num_attention_heads"]
    width, scale = {"32": (4, 0), "16": (2, 0)}.get(dtype[-2:], (1, 4))
    return sum(size * width + scale for _ in range(2 * config["num_hidden_layers"] * kv_heads))


TABLE = """OPT-13B 40 5120 40 40
Llama-2-7B 32 4096 32 32
Falcon-7B 32 4544 71 1
Mistral-7B-v0.1 32 4096 32 8
Llama-3.1-8B 32 4096 32 8
Qwen2.5-7B 28 3584 28 4"""


def published_models():
    rows = {}
    for line in TABLE.splitlines():
        name, *numbers = line.split()
        layers, width, heads, kv_heads = map(int, numbers)
        token = 4 * layers * kv_heads * width // heads
        rows[name] = [kv_heads, width // heads, token, (8 << 30) // (16 * token)]
    return rows


def move(k, by, theta=10_000.0):
    return rotate(k, [by] * len(k), theta)
