"""A quantiser for K and V: how much is lost for each bit that is kept?

The score is the signal-to-noise ratio in decibels less 6.02 for each bit a number takes: what a number of bits buys by
itself counts for nothing. This file has 8 bits and a float32 scale for each row.
"""

import numpy as np


def encode(rows):
    """rows: [num_rows, head_size] float32. Returns a tuple of arrays: their bytes are what counts."""
    scale = abs(rows).max(axis=1, keepdims=True) / 127 + 1e-12  # [num_rows, 1]
    return np.round(rows / scale).astype(np.int8), scale.astype(np.float32)


def decode(stored):
    """The rows again, [num_rows, head_size]."""
    codes, scale = stored
    return codes * scale
