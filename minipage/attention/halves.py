"""Numbers in two bytes: float16, and bfloat16, which NumPy does not have and which is kept here as uint16.

    float32    s eeeeeeee fffffffffffffffffffffff
    bfloat16   s eeeeeeee fffffff                     the upper half of a float32: its range, 8 significant bits
    float16    s eeeee ffffffffff                     at most 65,504, with 11 significant bits

The kernels compute in float32 and only read these, each with one or two instructions of the processor.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic

from minipage.attention.arguments import Floats


def to_bfloat16(numbers: Floats) -> npt.NDArray[np.uint16]:
    """The nearest bfloat16 to each number, [...] to [...]; from half way between two, the one whose last bit is 0."""
    numbers = np.ascontiguousarray(numbers, np.float32)
    bits = numbers.view(np.uint32)
    last_bit = (bits >> 16) & 1
    rounded = (bits + 0x7FFF + last_bit) >> 16  # carries into the upper half if the lower is more than one half
    return np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def from_bfloat16(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The numbers that these bfloat16 stand for, [...] to [...], exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@intrinsic
def bfloat16_number(typing_context, bits):  # type: ignore[no-untyped-def]
    """In compiled code: the float32 that a uint16 stands for as bfloat16; `from_bfloat16` of one number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        upper = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(upper, ir.FloatType())

    return numba.types.float32(numba.types.uint16), generate


@intrinsic
def float16_number(typing_context, bits):  # type: ignore[no-untyped-def]
    """In compiled code: the float32 that the bits of a float16, as int16, stand for. (Numba has no float16 on CPUs.)"""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return numba.types.float32(numba.types.int16), generate
