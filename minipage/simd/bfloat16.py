"""Products of bfloat16, two at a time: an int32 holds two of these numbers, and brings two products to a sum.

    a   a0 a1  a2 a3  ...    two of a row beside each other: one int32
    b   [w0 w1] [w0 w1] ...  two rows beside each other, for each column
        [w2 w3] [w2 w3]
    sums of 16 columns, of float32   +=   a0 * w0 + a1 * w1

Some processors have one instruction for it (AVX512-BF16), as fast as that for one product of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core.registry import cpu_target
from numba.extending import overload

from minipage.simd.halves import from_bfloat16, to_bfloat16


class BFloat(ir.Type):
    """LLVM's type, which llvmlite does not know by name."""

    def _to_string(self) -> str:
        return "bfloat"


BFLOAT = BFloat()


def has_instruction() -> bool:
    """Whether the code that numba makes may use it; older LLVM takes other arguments."""
    features = cpu_target.target_context.codegen().magic_tuple()[2]
    return "+avx512bf16" in features and binding.llvm_version_info[0] >= 16


def has_tiles() -> bool:
    """Whether the processor multiplies whole tiles of bfloat16 at once (AMX): so fast is nothing here."""
    return "+amx-bf16" in cpu_target.target_context.codegen().magic_tuple()[2]


def products(weight: Any, vector: Any) -> Any:
    """weight * vector; of pairs, the sum of their two products."""
    if vector.dtype != np.int32:
        return weight * vector
    return sum(a * b for a, b in zip(both_of(weight), both_of(vector)))


def both_of(pairs: Any) -> npt.NDArray[np.float32]:
    """[2, ...] the numbers that these int32 hold: what comes first in memory, what comes second."""
    bits = np.asarray(pairs, np.int32).view(np.uint32)
    return np.stack([from_bfloat16(bits & 0xFFFF), from_bfloat16(bits >> 16)])


def rounded(builder: Any, vector: Any) -> Any:
    """The machine code that makes bits of bfloat16 of numbers of float32, as `as_kept` does."""
    size = vector.type.count
    half, one, shift = (ir.Constant(ir.VectorType(ir.IntType(32), size), [n] * size) for n in (0x7FFF, 1, 16))
    bits = builder.bitcast(vector, half.type)
    last_bit = builder.and_(builder.lshr(bits, shift), one)
    bits = builder.lshr(builder.add(bits, builder.add(half, last_bit)), shift)
    return builder.trunc(bits, ir.VectorType(ir.IntType(16), size))


def add_two_products(builder: Any, acc: Any, a: Any, b: Any) -> Any:
    """The machine code of acc + both_of(a)[0] * both_of(b)[0] + both_of(a)[1] * both_of(b)[1]."""
    if has_instruction():
        two = ir.VectorType(BFLOAT, 2 * acc.type.count)
        kind = ir.FunctionType(acc.type, [acc.type, two, two])
        name = "llvm.x86.avx512bf16.dpbf16ps.512"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        return builder.call(function, [acc, builder.bitcast(a, two), builder.bitcast(b, two)])
    upper, shift = (ir.Constant(a.type, [n] * a.type.count) for n in (-(2**16), 16))
    for which in (lambda pairs: builder.shl(pairs, shift), lambda pairs: builder.and_(pairs, upper)):
        factors = (builder.bitcast(which(pairs), acc.type) for pairs in (a, b))
        acc = builder.fadd(acc, builder.fmul(*factors, flags=("contract",)), flags=("contract",))
    return acc


# ---- single numbers of arrays of float32 or bfloat16, for loops that serve both: LLVM makes vectors of them by itself


def as_float(number: Any) -> Any:
    """What a number of an array stands for."""
    return from_bfloat16(number) if number.dtype == np.uint16 else number


@overload(as_float)
def _as_float(number):
    if number != types.uint16:
        return lambda number: number
    return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)


def as_kept(number: Any, array: Any) -> Any:
    """A float32 that was computed from numbers of such arrays, as this one keeps it: see `to_bfloat16`."""
    return to_bfloat16(number)[0] if array.dtype == np.uint16 else number


@overload(as_kept)
def _as_kept(number, array):
    if array.dtype != types.uint16:
        return lambda number, array: number

    def nearest(number, array):  # NaN stays NaN: among its lower bits, which come from bfloat16, there is no 1
        bits = np.float32(number).view(np.uint32)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return nearest
