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

from minipage.errors import ConfigurationError, shown
from minipage.simd.arrays import Floats
from minipage.simd.fp8 import FP8_LARGEST, FP8_VALUES, fp8_codes
from minipage.simd.halves import widened

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
        known = ", ".join(KV_CACHE_DTYPES)
        raise ConfigurationError(f"kv_cache_dtype is {shown(name)}; it must be one of auto, {known}.")
    return KV_CACHE_DTYPES[name]


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


def dequantize(codes: npt.NDArray[Any], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[..., head_size] codes and [...] scales -> [..., head_size] numbers."""
    numbers = FP8_VALUES[codes] if codes.dtype == np.uint8 else codes.astype(np.float32)  # [..., head_size]
    with np.errstate(invalid="ignore"):  # 0 times infinity: see quantize
        return numbers * scales[..., None]


def numbers_of(stored: npt.NDArray[Any], scales: npt.NDArray[np.float32] | None) -> npt.NDArray[Any]:
    """[..., head_size] of a cache, and [...] scales if it has any -> [..., head_size] the numbers they stand for."""
    if scales is not None:
        return dequantize(stored, scales)
    return widened(stored)
