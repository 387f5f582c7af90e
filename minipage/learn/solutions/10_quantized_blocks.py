"""Lesson 10, solved. (minipage's own, which also knows fp8, is minipage/attention/quantize.py.)"""

from __future__ import annotations

import numpy as np


def quantize_rows(rows):
    scales = (np.abs(rows).max(axis=1) / 127).astype(np.float32)  # [n]
    safe = np.where(scales > 0, scales, 1)[:, None]  # [n, 1]
    return np.rint(rows / safe).clip(-127, 127).astype(np.int8), scales


def dequantize_rows(codes, scales):
    return codes.astype(np.float32) * scales[:, None]  # [n, D]


def bytes_per_block(block_size: int, num_layers: int, num_kv_heads: int, head_size: int, quantized: bool) -> int:
    rows = 2 * num_layers * block_size * num_kv_heads  # 2: K and V
    return rows * (head_size + 4 if quantized else 4 * head_size)
