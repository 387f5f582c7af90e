"""The two products of attention as a warpgroup makes them: 128 threads, on tensor cores that read shared memory.

`wgmma` (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"; GPUs of compute capability 9.0) multiplies
64 rows of a left matrix with a right one, 16 inner indices at a time. Nobody loads pieces of the right one: a number of
64 bits says where it lies. A warp has 16 rows of the result: lane 4 g + c those numbered g and g + 8, of each 8 columns
those numbered 2 c and 2 c + 1.

    Q @ K^T   [64 rows of q, 64 tokens]              both are in shared memory
    P @ V     [64 rows of q, positions in the head]  P, the weights, stays in the registers in which the scores were:
              what a lane has of the result above is what it has to bring of the left matrix here

Q, K and V lie in shared memory as tiles of 64 rows or 64 columns, cut into panels of both: 128 bytes, or 8 pieces of
16, of each row. Pieces of the same number, of 8 rows that follow each other, are in different banks of the memory:

    row 0   piece  0 1 2 3 4 5 6 7
    row 1          1 0 3 2 5 4 7 6
    row 2          2 3 0 1 6 7 4 5      ... a "swizzle of 128 bytes", which the tensor cores undo
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from minipage.attention.cuda import compat
from minipage.attention.cuda.compat import cuda, device_function, types
from minipage.attention.cuda.kinds import FLOAT16, Kind
from minipage.attention.cuda.ptx import (
    INDEX,
    SHARED,
    Registers,
    bfloats_in,
    bits_of_float,
    halves_in,
    instruction,
)
from minipage.simd.halves import from_bfloat16, to_bfloat16

int32, uint32 = types.int32, types.uint32

ROWS = 64  # of a panel, and of a tile of q
PANEL = ROWS * 32  # words of 64 of its columns
ALIGNMENT = 1024  # bytes, in which the order of pieces repeats itself

# What describes a matrix is a number of 64 bits. From bit 62 on, 1: a swizzle of 128 bytes. From bit 32, how far it is
# from 8 rows to the next 8; from bit 16, from a panel to the next (heeded if rows are the inner index, as of V); from
# bit 0, the address: all of these in units of 16 bytes.
LAYOUT = 1 << 62 | 8 * 128 // 16 << 32 | PANEL * 4 // 16 << 16

# The text of a product: a and b describe the left and the right matrix, x and y the next 16 inner indices of them.
# adds: no replaces the sums, yes adds to them. 1, 1: neither matrix is negated. rows_are_inner: 1, or 0, of each one in
# shared memory. The fence lets tensor cores see what was written to registers; after the wait all sums are there, and
# shared memory has been read.
BEGIN = "{ .reg .pred no, yes; .reg .b32 t; .reg .b64 a, b, x, y; setp.ne.b32 no, 0, 0; setp.eq.b32 yes, 0, 0; "
LOCATE = f"shr.u32 t, {{1}}, 4; cvt.u64.u32 {{0}}, t; or.b64 {{0}}, {{0}}, {LAYOUT}; "
PRODUCT = (
    "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{kind}.{kind} {{{sums}}}, {left}, y, {adds}, 1, 1, {rows_are_inner}; "
)
FENCE = "wgmma.fence.sync.aligned; "
END = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; }"


@device_function
def swizzled(row, word):
    """Where a word of a row lies in a tile: 4 words, a piece, stay together."""
    row, word = uint32(row), uint32(word)
    return int32(word // 32 * PANEL + row * 32 + uint32(word ^ row * 4) % 32)


@instruction(types.void, (), "fence.proxy.async.shared::cta;", volatile=True)
def show_tensor_cores():
    """What this thread has written to shared memory, or waited for, can be read by tensor cores after a barrier."""
    compat.this_thread().show_tensor_cores()


@cache
def score_multiplier(kind: Kind, head_size: int, tokens: int) -> Any:
    """(score, shared, q, shared, k): score[:] = Q @ K^T, the tokens // 2 numbers of this lane.

    q, k: the words of shared memory where their tiles begin.
    """
    n = tokens // 2
    text = BEGIN + LOCATE.format("a", f"${n}") + LOCATE.format("b", f"${n + 1}") + FENCE
    for i in range(head_size // 16):
        offset = i // 4 * (PANEL // 4) + i % 4 * 2  # of 16 inner indices: 32 bytes on, or a panel after four of them
        adds = "yes" if i else "no"
        text += f"add.s64 x, a, {offset}; add.s64 y, b, {offset}; " + product(kind, tokens, "x", adds, "0, 0")

    @instruction(types.void, (Registers(n), SHARED, INDEX, SHARED, INDEX), text + END, volatile=True)
    def multiply(score, shared, q, same, k):
        def scores(_lanes):
            own = cuda.threadIdx.x // 32 % 4 * 16
            return tile(kind, shared, q, ROWS, head_size)[own : own + 16] @ tile(kind, shared, k, tokens, head_size).T

        for i, x in enumerate(compat.warp_compute(None, lambda lanes: pieces_of_lanes(scores(lanes)))):
            score[i] = x

    return multiply


@cache
def value_multiplier(kind: Kind, head_size: int, tokens: int) -> Any:
    """(acc, p, shared, v): acc[:] += P @ V, the head_size // 2 numbers of this lane; p: its weights."""
    n, num_weights, name = head_size // 2, tokens // 2, type_name(kind)
    text = BEGIN + f".reg .b32 p<{num_weights // 2}>; " + LOCATE.format("b", f"${n + num_weights}")
    for i in range(num_weights // 2):
        text += f"cvt.rn.{name}x2.f32 p{i}, ${n + 2 * i + 1}, ${n + 2 * i}; "
    text += FENCE
    for i in range(tokens // 16):
        left = f"{{p{4 * i}, p{4 * i + 1}, p{4 * i + 2}, p{4 * i + 3}}}"
        text += f"add.s64 y, b, {i * 16 * 128 // 16}; " + product(kind, head_size, left, "yes", "1")

    @instruction(types.void, (Registers(n), Registers(num_weights), SHARED, INDEX), text + END, volatile=True)
    def multiply(acc, p, shared, v):
        def sums(lanes):
            given = rounded(kind, np.array(lanes, np.float32)).reshape(8, 4, -1, 2, 2)  # [g, c, 8 tokens, row, pair]
            weights = given.transpose(3, 0, 2, 1, 4).reshape(16, tokens)
            return weights @ tile(kind, shared, v, tokens, head_size)  # [16, D]

        own = [p[i] for i in range(num_weights)]
        for i, x in enumerate(compat.warp_compute(own, lambda lanes: pieces_of_lanes(sums(lanes)))):
            acc[i] += x

    return multiply


def product(kind: Kind, n: int, left: str, adds: str, rows_are_inner: str) -> str:
    """The text of one instruction: n columns of the result, of which a lane has n // 2 numbers."""
    sums = ", ".join(f"${i}" for i in range(n // 2))
    return PRODUCT.format(n=n, kind=type_name(kind), sums=sums, left=left, adds=adds, rows_are_inner=rows_are_inner)


def type_name(kind: Kind) -> str:
    return "f16" if kind == FLOAT16 else "bf16"


# ---- in plain Python


def rounded(kind: Kind, numbers: Any) -> Any:
    return numbers.astype(np.float16) if kind == FLOAT16 else from_bfloat16(to_bfloat16(numbers))


def tile(kind: Kind, shared: Any, start: int, rows: int, head_size: int) -> Any:
    """[rows, head_size] the numbers of a tile."""
    words = [
        bits_of_float(shared.read_by_tensor_cores(start + swizzled(row, word)))
        for row in range(rows)
        for word in range(head_size // 2)
    ]
    numbers = (halves_in if kind == FLOAT16 else bfloats_in)(np.array(words, np.uint32))
    return numbers.reshape(rows, head_size).astype(np.float64)


def pieces_of_lanes(result: Any) -> Any:
    """[16, n] of a warp -> [32, n // 2] what each lane has of it."""
    return result.astype(np.float32).reshape(2, 8, -1, 4, 2).transpose(1, 3, 2, 0, 4).reshape(32, -1)
