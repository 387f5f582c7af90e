"""Lesson 10: quantized blocks. Replace each `raise NotImplementedError(...)` by code of yours.

K and V in one byte a number instead of four: each row (one token's K or V in one head) is scaled so that its largest
number just fits, rounded, and kept with its scale. Nearly four times as many blocks fit in the same memory.
"""

from __future__ import annotations

import numpy as np  # noqa: F401 (you will use it)


def quantize_rows(rows):
    """Exercise 10.1: rows of numbers as int8 codes, from -127 to 127, and a scale for each row.

    Args:
        rows: [n, D] float32, n and D at least 1, of any size (a row's largest magnitude may be 1e-35, or 1e36). They belong to
            somebody else: read them, and do not write into them.

    Returns:
        (codes [n, D] int8, scales [n] float32), such that codes * scale is as near to the row as int8 can be: the scale
        is the row's largest magnitude / 127, and codes are rounded to the nearest (np.rint). A row of zeros has zeros
        for codes and the scale 0, with no division by 0; no other row counts as zeros, however small.
    """
    raise NotImplementedError("Exercise 10.1: largest magnitude / 127, divide, round")


def dequantize_rows(codes, scales):
    """Exercise 10.2: the numbers that codes [n, D] int8 and scales [n] float32 stand for, [n, D] float32.

    The result is an array of its own; codes and scales stay as they are.
    """
    raise NotImplementedError("Exercise 10.2: each row's codes times its scale")


def bytes_per_block(
    block_size: int, num_layers: int, num_kv_heads: int, head_size: int, quantized: bool
) -> int:
    """Exercise 10.3: the bytes of one block: K and V of `block_size` tokens, in all layers.

    float32 takes 4 bytes a number. Quantized, a number takes 1 byte, and each row of `head_size` numbers has a scale of
    4 bytes besides. A whole number comes back.

    For blocks of 16 tokens in 12 layers with 12 heads of 64 it is 1179648, and 313344 if quantized.
    """
    raise NotImplementedError(
        "Exercise 10.3: how many rows there are in a block, and the bytes of each"
    )
