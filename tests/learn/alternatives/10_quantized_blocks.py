"""Lesson 10 in another style: row by row, and a formula in numbers instead of rows."""

import numpy as np


def quantize_rows(rows):
    codes, scales = np.zeros(rows.shape, np.int8), np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        top = max(abs(float(row.min())), abs(float(row.max())))
        if top:
            scales[i] = top / 127
            codes[i] = np.round(row * (127 / top))
    return codes, scales


def dequantize_rows(codes, scales):
    return np.stack([code * np.float32(scale) for code, scale in zip(codes, scales)]).astype(np.float32)


def bytes_per_block(block_size, num_layers, num_kv_heads, head_size, quantized):
    numbers = block_size * num_layers * num_kv_heads * head_size
    scales = block_size * num_layers * num_kv_heads
    return 2 * (numbers + 4 * scales) if quantized else 8 * numbers
