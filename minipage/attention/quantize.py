"""K and V in one byte a number: half to a quarter of the memory, for a bounded error.

Each row (one token's K or V in one head) is scaled so that its largest number just fits, rounded, and kept with its
scale, one float32. What comes back differs from what went in by at most, with `largest` = the row's largest magnitude,

    int8   largest / 254            127 evenly spaced steps to each side, so half a step
    fp8    |x| / 16, or for the smallest numbers largest / 458,752       a step in proportion to the number itself

fp8 is e4m3: a sign, 4 bits of exponent, 3 of fraction, no infinities, largest number 448 (Micikevicius et al., "FP8
Formats for Deep Learning", arXiv 2209.05433). NumPy has no such type, so it is kept as bytes, and a table of the 256
numbers they stand for turns them back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from minipage.attention.arguments import Floats
from minipage.attention.halves import from_bfloat16
from minipage.errors import ConfigurationError

# Options of LLM(kv_cache_dtype=...) -> what the cache is made of in NumPy. Bytes without a sign are codes of fp8; two
# bytes without a sign are the bits of bfloat16.
KV_CACHE_DTYPES: dict[str, type] = {
    "float32": np.float32,
    "bfloat16": np.uint16,
    "float16": np.float16,
    "int8": np.int8,
    "fp8": np.uint8,
}


def kv_dtype(name: str) -> type:
    if not isinstance(name, str) or name not in KV_CACHE_DTYPES:
        raise ConfigurationError(f"kv_cache_dtype is {name!r}; it must be one of auto, {', '.join(KV_CACHE_DTYPES)}.")
    return KV_CACHE_DTYPES[name]


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


def quantize(rows: Floats, dtype: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """[..., head_size] numbers -> [..., head_size] codes of `dtype` (int8 or uint8) and [...] scales.

    No code is infinite. But the scale of a row with an infinity or NaN is, so that all that comes back of it is NaN.
    """
    largest = np.abs(rows).max(axis=-1)  # [...]
    scales = (largest / (127 if dtype == np.int8 else FP8_LARGEST)).astype(np.float32)  # [...]
    finite = np.where(np.isfinite(scales)[..., None], rows, 0)  # [..., head_size]
    scaled = finite / np.where(scales > 0, scales, 1)[..., None]  # [..., head_size]
    if dtype == np.int8:
        return np.rint(scaled).clip(-127, 127).astype(np.int8), scales
    return fp8_codes(scaled), scales


def fp8_codes(numbers: Floats) -> npt.NDArray[np.uint8]:
    """The nearest fp8 to each number; from half way between two, the one whose last bit is 0."""
    values = FP8_VALUES[:127].astype(np.float64)  # [127] from 0 to 448
    half_ways = (values[1:] + values[:-1]) / 2  # [126]
    magnitudes = np.abs(numbers)
    codes = np.searchsorted(half_ways, magnitudes)  # how many half ways lie below
    codes += (codes % 2 == 1) & (magnitudes == half_ways[np.minimum(codes, 125)])
    return np.asarray(codes + 128 * np.signbit(numbers), np.uint8)


def dequantize(codes: npt.NDArray[Any], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[..., head_size] codes and [...] scales -> [..., head_size] numbers."""
    numbers = FP8_VALUES[codes] if codes.dtype == np.uint8 else codes.astype(np.float32)  # [..., head_size]
    with np.errstate(invalid="ignore"):  # 0 times infinity: see quantize
        return numbers * scales[..., None]


def numbers_of(stored: npt.NDArray[Any], scales: npt.NDArray[np.float32] | None) -> npt.NDArray[Any]:
    """[..., head_size] of a cache, and [...] scales if it has any -> [..., head_size] the numbers they stand for."""
    if scales is not None:
        return dequantize(stored, scales)
    if stored.dtype == np.uint16:
        return from_bfloat16(stored)
    return stored.astype(np.float32) if stored.dtype == np.float16 else stored
