"""Vectors for compiled code: 16 numbers of a cache's row, held in the processor's registers.

    for d in range(0, head_size, LANES):
        sums = fma(sums, load(q, (head, d)), load(k, (slot, head, d)))       16 products more, added to 16 sums

Numba's compiler, LLVM, turns ordinary loops into vector instructions too, but only if it can prove that nothing which
the loop writes is read by it. With rows picked from a cache it cannot. Said like this nothing is left to prove, on any
processor: LLVM cuts these vectors into as many registers as it takes (one of AVX-512, two of AVX2, four of NEON).
Float16, bfloat16, int8 and fp8 become float32 as they are loaded.

Each instruction comes twice: `@in_python` says in NumPy what it does, and the function below makes the machine code for
it. With NUMBA_DISABLE_JIT=1 the first is called, and a vector is an array of LANES numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from minipage.simd.bfloat16 import add_two_products, products, rounded
from minipage.simd.fp8 import FP8_VALUES
from minipage.simd.halves import stored, widened
from minipage.simd.options import IN_PYTHON

LANES = 16
LINE = 64  # bytes that the processor fetches at once
FAST = ("contract", "nsz", "reassoc")  # sums in any order, products fused with sums; infinities and NaN stay

INT = ir.VectorType(ir.IntType(32), LANES)
FLOAT = ir.VectorType(ir.FloatType(), LANES)


def in_python(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorates a function that makes machine code; `plain` does in Python what that does."""
    return lambda make: wraps(make)(plain) if IN_PYTHON else intrinsic(make)


def part(array: Any, index: tuple[int, ...], count: int = LANES) -> Any:
    """array[index : index + count] along the last axis, to read or to write."""
    *row, start = index
    return array[tuple(row)][start : start + count]  # [count]


def numbers_in(stored: Any) -> Any:
    """[n] of a cache -> [n] what they stand for, except for the scale of their row; int16 are the bits of float16."""
    if stored.dtype == np.uint8:
        return FP8_VALUES[stored]
    if stored.dtype == np.int8:
        return stored.astype(np.float32)
    return widened(stored.view(np.float16) if stored.dtype == np.int16 else stored)


class Vector(types.Type):
    """The numba type of LANES numbers of float32 or float64, or pairs of bfloat16."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, ir.VectorType(manager.lookup(vector.dtype).get_value_type(), LANES))


@in_python(lambda array, index: numbers_in(part(array, index)))
def load(typing_context, array, index):
    """array[index : index + LANES] along the last axis; index: a tuple of integers, all numbers within the array.

    int32 stay what they are: pairs of bfloat16, for `fma`.
    """

    def generate(context, builder, signature, arguments):
        place = address(context, builder, signature, arguments)
        vector = ir.VectorType(place.type.pointee, LANES).as_pointer()
        stored = builder.load(builder.bitcast(place, vector), align=array.dtype.bitwidth // 8)
        return numbers(builder, stored, array.dtype)

    return Vector(array.dtype if array.dtype in (types.float64, types.int32) else types.float32)(array, index), generate


@in_python(lambda array, index, count: np.pad(numbers_in(part(array, index, count)), (0, LANES - count)))
def load_part(typing_context, array, index, count):
    """The same, but only the first `count` numbers are read, fewer than LANES; the others are 0."""

    def generate(context, builder, signature, arguments):
        place = address(context, builder, signature, arguments)
        memory = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(place.type.pointee, LANES), None))
        start = builder.bitcast(memory, place.type)
        count = context.cast(builder, arguments[2], signature.args[2], types.intp)
        with cgutils.for_range(builder, count) as loop:
            builder.store(builder.load(builder.gep(place, [loop.index])), builder.gep(start, [loop.index]))
        return numbers(builder, builder.load(memory), array.dtype)

    return Vector(array.dtype if array.dtype == types.float64 else types.float32)(array, index, count), generate


@in_python(lambda array, index, vector: np.copyto(part(array, index), stored(vector, array.dtype)))
def store(typing_context, array, index, vector):
    """array[index : index + LANES] = vector; the array has the vector's dtype, or holds the bits of bfloat16."""

    def generate(context, builder, signature, arguments):
        place, kept = address(context, builder, signature, arguments), arguments[2]
        if array.dtype == types.uint16:
            kept = rounded(builder, kept)
        builder.store(kept, builder.bitcast(place, kept.type.as_pointer()), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, vector), generate


@in_python(lambda acc, weight, vector: acc + products(weight, vector))
def fma(typing_context, acc, weight, vector):
    """acc + weight * vector; weight is one number, or a vector too. Of pairs of bfloat16, both products are added."""

    def generate(context, builder, signature, arguments):
        acc, weight, vector = arguments
        if weight.type != vector.type:
            weight = splat(builder, weight)
        if vector.type == INT:
            return add_two_products(builder, acc, weight, vector)
        return builder.fadd(acc, builder.fmul(weight, vector, flags=FAST), flags=FAST)

    return acc(acc, weight, vector), generate


@in_python(lambda vector, factor: vector * factor)
def product(typing_context, vector, factor):
    """vector * factor; factor is one number, or a vector too."""

    def generate(context, builder, signature, arguments):
        vector, factor = arguments
        if factor.type != vector.type:
            factor = splat(builder, factor)
        return builder.fmul(vector, factor, flags=FAST)

    return vector(vector, factor), generate


@in_python(lambda number: np.full(LANES, number))
def filled(typing_context, number):
    """A vector of LANES times this number."""

    def generate(context, builder, signature, arguments):
        return splat(builder, arguments[0])

    return Vector(number)(number), generate


@in_python(lambda vector: vector.sum())
def total_of(typing_context, vector):
    """The sum of a vector's numbers."""

    def generate(context, builder, signature, arguments):
        number = arguments[0].type.element
        name = f"llvm.vector.reduce.fadd.v{LANES}f{vector.dtype.bitwidth}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(number, [number, arguments[0].type]), name
        )
        return builder.call(function, [ir.Constant(number, -0.0), arguments[0]], fastmath=FAST)

    return vector.dtype(vector), generate


@in_python(lambda array, index, vectors: np.copyto(part(array, index, 4), np.sum(vectors, axis=1)))
def store_totals(typing_context, array, index, vectors):
    """array[index : index + 4] = the sums of the numbers of four vectors: quicker than one after the other."""

    def generate(context, builder, signature, arguments):
        a, b, c, d = cgutils.unpack_tuple(builder, arguments[2])
        first, second = (0, 4, 1, 5), (2, 6, 3, 7)
        ab, cd = add_picked(builder, a, b, first, second), add_picked(builder, c, d, first, second)
        totals = add_picked(builder, ab, cd, (0, 1, 4, 5), (2, 3, 6, 7))  # a, b, c, d, a, b, c, d, ...
        while totals.type.count > 4:
            lower, upper = halves(builder, totals)
            totals = builder.fadd(lower, upper, flags=FAST)
        place = builder.bitcast(address(context, builder, signature, arguments), totals.type.as_pointer())
        builder.store(totals, place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, vectors), generate


@in_python(lambda vector: vector.max())
def highest_of(typing_context, vector):
    """The largest of a vector's numbers."""

    def generate(context, builder, signature, arguments):
        highest = arguments[0]
        while highest.type.count > 1:
            lower, upper = halves(builder, highest)
            highest = builder.select(builder.fcmp_ordered(">", lower, upper), lower, upper)
        return builder.extract_element(highest, ir.IntType(32)(0))

    return vector.dtype(vector), generate


@in_python(lambda array: array.itemsize)
def itemsize(typing_context, array):
    """Bytes of a number: `array.itemsize`, but known when it is compiled, so that a choice costs nothing."""

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.intp, array.dtype.bitwidth // 8)

    return types.intp(array), generate


@in_python(lambda array, index: None)
def prefetch(typing_context, array, index):
    """Tell the processor that array[index] will soon be read: a number, or a whole row. Changes nothing."""

    def generate(context, builder, signature, arguments):
        start = builder.bitcast(address(context, builder, signature, arguments), ir.IntType(8).as_pointer())
        length = cgutils.unpack_tuple(builder, context.make_array(array)(context, builder, arguments[0]).shape)[-1]
        if len(index) == array.ndim:
            length = length.type(1)
        num_bytes = builder.mul(length, length.type(array.dtype.bitwidth // 8))
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [start.type, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # 0: to be read; 2: into the second-level cache; 1: numbers, not instructions
        with cgutils.for_range_slice(builder, length.type(0), num_bytes, length.type(LINE)) as (offset, _):
            builder.call(function, [builder.gep(start, [offset]), flag(0), flag(2), flag(1)])
        return context.get_dummy_value()

    return types.void(array, index), generate


def exp(x: Any) -> Any:
    """e ** x; for float32 only x up to 0, with a relative error of at most (2 + |x|) / 2 ** 23 in compiled code, where
    it is exp(-87) for all x below."""
    return np.exp(x)


@overload(exp, inline="always")
def _exp(x):
    if x != types.float32:
        return lambda x: math.exp(x)

    def exp_float32(x):
        """2 ** n, put together from its bits, times 2 ** r by its Taylor series: nothing that has no vector form."""
        power = max(x, np.float32(-87)) * np.float32(1.4426950408889634)  # exp(-87) stands for all that is smaller
        n = np.floor(power + np.float32(0.5))
        r = power - n  # from -0.5 to 0.5
        series = np.float32(0.00015403530393381608)
        series = series * r + np.float32(0.0013333558146428443)
        series = series * r + np.float32(0.009618129107628477)
        series = series * r + np.float32(0.05550410866482158)
        series = series * r + np.float32(0.2402265069591007)
        series = series * r + np.float32(0.6931471805599453)
        series = series * r + np.float32(1)
        return series * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)

    return exp_float32


# ---- what the code above generates code with


def address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Where array[index] lies, for (array, index, ...); the first number there, if index is one too short."""
    array_type, index_type = signature.args[:2]
    array = context.make_array(array_type)(context, builder, arguments[0])
    indices = [
        context.cast(builder, index, kind, types.intp)
        for index, kind in zip(cgutils.unpack_tuple(builder, arguments[1]), index_type, strict=True)
    ]
    indices += [ir.IntType(64)(0)] * (array_type.ndim - len(indices))
    return cgutils.get_item_pointer(context, builder, array_type, array, indices)


def splat(builder: Any, number: Any) -> Any:
    one = builder.insert_element(
        ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined), number, ir.IntType(32)(0)
    )
    return builder.shuffle_vector(one, one, ir.Constant(INT, [0] * LANES))


def halves(builder: Any, vector: Any) -> list[Any]:
    half = vector.type.count // 2
    masks = [ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(i, i + half))) for i in (0, half)]
    return [builder.shuffle_vector(vector, vector, mask) for mask in masks]


def add_picked(builder: Any, a: Any, b: Any, *picks: Any) -> Any:
    """The sum of two choices of numbers: four of every four of a, called 0 to 3, and of b, called 4 to 7."""
    masks = [[i + (n if n < 4 else LANES + n - 4) for i in range(0, LANES, 4) for n in pick] for pick in picks]
    first, second = (builder.shuffle_vector(a, b, ir.Constant(INT, mask)) for mask in masks)
    return builder.fadd(first, second, flags=FAST)


def numbers(builder: Any, stored: Any, dtype: Any) -> Any:
    """The machine code of `numbers_in`."""
    if dtype == types.int8:
        return builder.sitofp(builder.sext(stored, INT), FLOAT)
    if dtype == types.uint16:  # bfloat16: the upper half of a float32
        return builder.bitcast(builder.shl(builder.zext(stored, INT), constant(16)), FLOAT)
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(stored, ir.VectorType(ir.HalfType(), LANES)), FLOAT)
    if dtype == types.uint8:  # fp8: with exponent and fraction where a float32 has them, it is too small by 2 ** 120
        bits = builder.zext(stored, INT)
        magnitude = builder.and_(bits, constant(0x7F))
        number = builder.bitcast(builder.shl(magnitude, constant(20)), FLOAT)
        number = builder.bitcast(builder.fmul(number, ir.Constant(FLOAT, [2.0**120] * LANES)), INT)
        number = builder.select(builder.icmp_unsigned("==", magnitude, constant(0x7F)), constant(0x7FC00000), number)
        return builder.bitcast(
            builder.or_(number, builder.shl(builder.and_(bits, constant(0x80)), constant(24))), FLOAT
        )
    return stored


def constant(number: int) -> Any:
    return ir.Constant(INT, [number] * LANES)
