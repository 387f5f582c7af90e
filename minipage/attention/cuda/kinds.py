"""The kinds of numbers that q, K and V may be made of, as the kernels read and write them.

kind      NumPy dtype   in memory
float32   float32
float16   float16       5 bits of exponent, 10 of fraction
bfloat16  uint16        the upper half of a float32; NumPy has no name for it
int8      int8          with a float32 scale for each row; see minipage/attention/quantize.py
fp8       uint8         e4m3, likewise
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minipage.attention.cuda.compat import device_function, types
from minipage.attention.cuda.ptx import (
    bits_of_float,
    float_of_bits,
    fma_bfloats,
    fma_halves,
    high_half,
    low_half,
    nearest_integer,
    pack_bfloats,
    pack_halves,
    prmt,
)
from minipage.errors import KernelArgumentError

LOWEST = np.float32(-1e30)  # a score below all others; not -infinity, which has no arithmetic under fastmath

float32, int8, uint8, uint16, uint32 = types.float32, types.int8, types.uint8, types.uint16, types.uint32


class Kind(NamedTuple):
    name: str
    num_bytes: int  # of one number
    largest: float  # what the largest number of a row is scaled to; 0: the numbers are stored as they are
    number: Callable[[Any, int], Any]  # (word, i) -> float32, the i-th number in a word of 32 bits
    stored: Callable[[Any], Any]  # float32 -> what lies in memory

    @property
    def per_word(self) -> int:
        return 4 // self.num_bytes

    @property
    def is_quantized(self) -> bool:
        return self.largest > 0


@device_function
def number_float32(word, i):
    return float_of_bits(word)


@device_function
def number_float16(word, i):
    return low_half(word) if i == 0 else high_half(word)


@device_function
def number_bfloat16(word, i):
    return float_of_bits(uint32(word << 16 & 0xFFFF0000 if i == 0 else word & 0xFFFF0000))


@device_function
def number_int8(word, i):
    """No conversion, which is slow: put the byte + 128 where a float32 near 2 ** 23 has its units, and subtract."""
    return float_of_bits(uint32(0x4B000000 | (word >> 8 * i & 0xFF ^ 0x80))) - float32(2**23 + 128)


@device_function
def number_fp8(word, i):
    """Moved to where fp16 has sign, exponent and fraction, it is 2 ** 8 too small: the exponents start elsewhere."""
    code = word >> 8 * i & 0xFF
    return low_half(uint32((code & 0x80) << 8 | (code & 0x7F) << 7)) * float32(256)


@device_function
def stored_float32(x):
    return float32(x)


@device_function
def stored_float16(x):
    return uint16(pack_halves(x, float32(0)) & 0xFFFF)


@device_function
def stored_bfloat16(x):
    return uint16(pack_bfloats(x, float32(0)) & 0xFFFF)


@device_function
def stored_int8(x):
    return int8(nearest_integer(x))


@device_function
def stored_fp8(x):
    """The nearest code, from half way the even one; |x| is at most 448, except for rounding."""
    bits = bits_of_float(x)
    sign = bits >> 24 & 0x80
    magnitude = min(float_of_bits(uint32(bits & 0x7FFFFFFF)), float32(448))
    if magnitude < float32(2**-6):  # evenly spaced, 2 ** -9 apart; 8 of them are the first of the others
        return uint8(sign | nearest_integer(magnitude * float32(512)))
    bits = bits_of_float(magnitude)
    rounded = bits + 0x7FFFF + (bits >> 20 & 1)  # 3 bits of fraction are kept
    return uint8(sign | (rounded >> 20) - (120 << 3))  # the exponent counts from 7 instead of 127


KINDS = {
    np.dtype(np.float32): Kind("float32", 4, 0, number_float32, stored_float32),
    np.dtype(np.float16): Kind("float16", 2, 0, number_float16, stored_float16),
    np.dtype(np.uint16): Kind("bfloat16", 2, 0, number_bfloat16, stored_bfloat16),
    np.dtype(np.int8): Kind("int8", 1, 127, number_int8, stored_int8),
    np.dtype(np.uint8): Kind("fp8", 1, 448, number_fp8, stored_fp8),
}


def reader(kind: Kind) -> Any:
    """A device function: one number, as it lies in an array of its kind (as uint16, if of two bytes) -> float32."""
    number = kind.number
    if kind.name == "float32":
        return device_function(lambda stored: stored)
    if kind.num_bytes == 2:
        return device_function(lambda stored: number(uint32(stored), 0))
    return device_function(lambda stored: number(uint32(stored & 0xFF), 0))


FLOAT16, BFLOAT16 = KINDS[np.dtype(np.float16)], KINDS[np.dtype(np.uint16)]


@device_function
def pair_int8_float16(word, pair):
    """Two of four numbers. A byte + 128 under the exponent of 1024 is a float16, by 1024 + 128 too large."""
    low_bytes = prmt(uint32(word ^ 0x80808080), uint32(0x64646464), uint32(0x4342 if pair else 0x4140))
    return fma_halves(low_bytes, uint32(0x3C003C00), uint32(0xE480E480))  # * 1 - 1152


@device_function
def pair_int8_bfloat16(word, pair):
    """7 bits under the exponent of 128: by 256 too large if the sign is set, else by 128; the sign is that bit."""
    low_bytes = prmt(word, uint32(0), uint32(0x4342 if pair else 0x4140))
    too_much = uint32(low_bytes & 0x00800080 | 0x43004300)
    return fma_bfloats(too_much, uint32(0xBF80BF80), uint32(low_bytes & 0x007F007F | 0x43004300))  # * -1 +


@device_function
def pair_fp8_float16(word, pair):
    high_bytes = prmt(word, uint32(0), uint32(0x3424 if pair else 0x1404))
    moved = uint32(high_bytes & 0x80008000 | (high_bytes & 0x7F007F00) >> 1)
    return fma_halves(moved, uint32(0x5C005C00), uint32(0x80008000))  # * 2 ** 8 - 0


@device_function
def pair_fp8_bfloat16(word, pair):
    high_bytes = prmt(word, uint32(0), uint32(0x3424 if pair else 0x1404))
    moved = uint32(high_bytes & 0x80008000 | (high_bytes & 0x7F007F00) >> 4)
    return fma_bfloats(moved, uint32(0x7B807B80), uint32(0x80008000))  # * 2 ** 120 - 0


PAIRS = {
    ("int8", "float16"): pair_int8_float16,
    ("int8", "bfloat16"): pair_int8_bfloat16,
    ("fp8", "float16"): pair_fp8_float16,
    ("fp8", "bfloat16"): pair_fp8_bfloat16,
}


def widener(kv: Kind, to: Kind) -> Any:
    """(word, array, row, i): the numbers of the i-th word of a row, two bytes each, exactly, to their places there."""
    if kv.num_bytes == 2:

        def widen(word, array, row, i):
            array[row, i] = word
    else:
        pair = PAIRS[kv.name, to.name]

        def widen(word, array, row, i):
            array[row, 2 * i] = pair(word, 0)
            array[row, 2 * i + 1] = pair(word, 1)

    return device_function(widen)


def kind_of(dtype: np.dtype[Any], what: str) -> Kind:
    """Raise KernelArgumentError if `what` has a dtype that kernels cannot read."""
    if dtype not in KINDS:
        raise KernelArgumentError(f"{what} is {dtype}; CUDA kernels read float32, float16, bfloat16, int8 and fp8.")
    return KINDS[dtype]
