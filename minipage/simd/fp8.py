"""Numbers of one byte: fp8, as e4m3.

    s eeee fff      a sign, 4 bits of exponent, 3 of fraction; no infinities, largest number 448

NumPy has no such type, so the numbers are kept as bytes, and a table of the 256 numbers they stand for turns them back
(Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from minipage.simd.arrays import Floats


def fp8_values() -> npt.NDArray[np.float32]:
    """[256] the number that each byte stands for; 0x7f and 0xff are NaN."""
    code = np.arange(128)  # [128]
    exponent, fraction = code >> 3, code & 7  # [128] each
    normal = np.ldexp(1 + fraction / 8, exponent - 7)  # [128]
    magnitude = np.where(exponent == 0, np.ldexp(fraction / 8, -6), normal)  # [128]; exponent 0: evenly spaced from 0
    magnitude[127] = np.nan
    return np.concatenate([magnitude, -magnitude]).astype(np.float32)  # [256]


FP8_VALUES = fp8_values()  # [256]
FP8_LARGEST = 448.0


def fp8_codes(numbers: Floats) -> npt.NDArray[np.uint8]:
    """The nearest fp8 to each number; from half way between two, the one whose last bit is 0."""
    values = FP8_VALUES[:127].astype(np.float64)  # [127] from 0 to 448
    half_ways = (values[1:] + values[:-1]) / 2  # [126]
    magnitudes = np.abs(numbers)
    codes = np.searchsorted(half_ways, magnitudes)  # how many half ways lie below
    codes += (codes % 2 == 1) & (magnitudes == half_ways[np.minimum(codes, 125)])
    return np.asarray(codes + 128 * np.signbit(numbers), np.uint8)
