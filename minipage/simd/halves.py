"""Numbers in two bytes: float16, and bfloat16, which NumPy does not have and which is kept here as uint16.

    float32    s eeeeeeee fffffffffffffffffffffff
    bfloat16   s eeeeeeee fffffff                     the upper half of a float32: its range, 8 significant bits
    float16    s eeeee ffffffffff                     at most 65,504, with 11 significant bits

The kernels compute in float32 and only read these: vectors.py.

A K or V beyond the largest float16 is kept as that: as an infinity it would turn every score to NaN. An infinity stays
one, and NaN stays NaN, for a model that computes these has failed, and that should be seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from minipage.simd.arrays import Floats

LARGEST_FLOAT16 = 65_504


def stored(numbers: Floats, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """[...] numbers as a cache of this dtype holds them, [...]."""
    if dtype == np.uint16:
        return to_bfloat16(numbers)
    return to_float16(numbers) if dtype == np.float16 else numbers


def to_float16(numbers: Floats) -> npt.NDArray[np.float16]:
    """The nearest float16 to each number, [...] to [...]; infinities are near to nothing else."""
    limited = np.clip(numbers, -LARGEST_FLOAT16, LARGEST_FLOAT16)  # [...]
    return np.where(np.isinf(numbers), numbers, limited).astype(np.float16)


def to_bfloat16(numbers: Floats) -> npt.NDArray[np.uint16]:
    """The nearest bfloat16 to each number, [...] to [...]; from half way between two, the one whose last bit is 0."""
    numbers = np.ascontiguousarray(numbers, np.float32)
    bits = numbers.view(np.uint32)
    if not np.any(bits & 0xFFFF):  # they are such numbers, as those of a model in bfloat16
        return (bits >> 16).astype(np.uint16)
    last_bit = (bits >> 16) & 1
    rounded = (bits + 0x7FFF + last_bit) >> 16  # carries into the upper half if the lower is more than one half
    return np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def from_bfloat16(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The numbers that these bfloat16 stand for, [...] to [...], exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def widened(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[...] of a cache without scales -> [...] the numbers they stand for, in float32 if they were of two bytes."""
    if stored.dtype == np.uint16:
        return from_bfloat16(stored)
    return stored.astype(np.float32) if stored.dtype == np.float16 else stored
