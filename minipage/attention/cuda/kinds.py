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

from minipage.attention.cuda import compat
from minipage.attention.cuda.compat import device_function, types
from minipage.attention.cuda.ptx import (
    add_halves,
    bits_of_float,
    float_of_bits,
    high_fp8_as_halves,
    high_half,
    low_fp8_as_halves,
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
def halves_of_int8(word, pair):
    """The last bits of a float16 count 2 ** -24: a byte + 128 is put there, and 128 of them are subtracted."""
    last_bits = prmt(uint32(word ^ 0x80808080), uint32(0), uint32(0x4342 if pair else 0x4140))
    return add_halves(last_bits, uint32(0x80808080))


@device_function
def halves_of_fp8(word, pair):
    """Where fp16 has sign, exponent and fraction, they are 2 ** 8 too small: its exponents start elsewhere."""
    high_bytes = prmt(word, uint32(0), uint32(0x3424 if pair else 0x1404))
    return uint32(high_bytes & 0x80008000 | (high_bytes & 0x7F007F00) >> 1)


@device_function
def halves_of_fp8_at_once(word, pair):
    return high_fp8_as_halves(word) if pair else low_fp8_as_halves(word)


def halves_of(kind: Kind) -> tuple[Any, float]:
    """((word, pair): two of the four numbers of a word, int8 or fp8, as float16, exactly; what they are times)."""
    if kind.name == "int8":
        return halves_of_int8, 2.0**-24
    return (halves_of_fp8_at_once, 1.0) if compat.converts_fp8() else (halves_of_fp8, 2.0**-8)


def kind_of(dtype: np.dtype[Any], what: str) -> Kind:
    """Raise KernelArgumentError if `what` has a dtype that kernels cannot read."""
    if dtype not in KINDS:
        raise KernelArgumentError(f"{what} is {dtype}; CUDA kernels read float32, float16, bfloat16, int8 and fp8.")
    return KINDS[dtype]
