"""Lesson 14, solved. (minipage's own are `rotate` of minipage/model/layers/plain.py, and attention/reference.py.)"""

from __future__ import annotations

import numpy as np

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}


def rotate(x, positions, theta: float = 10_000.0):
    half = x.shape[2] // 2
    frequencies = theta ** (-np.arange(half) / half)  # [D / 2]
    angles = np.asarray(positions)[:, None, None] * frequencies  # [T, 1, D / 2]
    cos, sin = np.cos(angles), np.sin(angles)  # each [T, 1, D / 2]
    a, b = x[..., :half], x[..., half:]  # each [T, n, D / 2]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)  # [T, n, D]


def kv_head_of(head: int, num_heads: int, num_kv_heads: int) -> int:
    return head // (num_heads // num_kv_heads)


def grouped_attention(q, k_cache, v_cache, block_table, context_len: int):
    num_kv_heads, size = k_cache.shape[2:]
    blocks = block_table[: -(-context_len // k_cache.shape[1])]  # [num_blocks_used]
    k, v = (cache[blocks].reshape(-1, num_kv_heads, size)[:context_len] for cache in (k_cache, v_cache))  # [n, KH, D]
    q = q.reshape(num_kv_heads, -1, size)  # [KH, H / KH, D]: the heads that share are neighbours
    scores = np.einsum("hgd,nhd->hgn", q, k) / np.sqrt(size)  # [KH, H / KH, n]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))  # [KH, H / KH, n]
    weights /= weights.sum(axis=-1, keepdims=True)  # [KH, H / KH, n]
    return np.einsum("hgn,nhd->hgd", weights, v).reshape(-1, size)  # [H, D]


def kv_heads_and_size(config: dict) -> tuple[int, int]:
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or config.get("num_kv_heads") or num_heads
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        num_kv_heads = 1
    return num_kv_heads, config.get("head_dim") or config["hidden_size"] // num_heads


def bytes_per_token(config: dict, dtype: str) -> int:
    num_kv_heads, head_size = kv_heads_and_size(config)
    rows = 2 * config["num_hidden_layers"] * num_kv_heads  # 2: K and V
    return rows * (head_size * BYTES[dtype] + (4 if BYTES[dtype] == 1 else 0))


def published_models() -> dict[str, tuple[int, int, int, int]]:
    names = "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"
    sizes = {
        "OPT-13B": (40, 5120, 40, 40),
        "Llama-2-7B": (32, 4096, 32, 32),
        "Falcon-7B": (32, 4544, 71, 1),
        "Mistral-7B-v0.1": (32, 4096, 32, 8),
        "Llama-3.1-8B": (32, 4096, 32, 8),
        "Qwen2.5-7B": (28, 3584, 28, 4),
    }
    table = {}
    for model, numbers in sizes.items():
        config = dict(zip(names, numbers))
        token = bytes_per_token(config, "bfloat16")
        table[model] = (*kv_heads_and_size(config), token, 8 * 2**30 // (16 * token))
    return table


def move(k, by: int, theta: float = 10_000.0):
    return rotate(k, np.full(len(k), by), theta)
