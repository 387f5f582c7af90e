"""What a lane of a warp has of the matrices that tensor cores multiply; which numbers these are, tensor_cores.py says.

A kernel is made for one kind of numbers, so each function here makes the device function for a kind.
"""

from __future__ import annotations

from typing import Any

from minipage.attention.cuda.compat import cuda, device_function, types
from minipage.attention.cuda.kinds import FLOAT16, Kind, halves_of
from minipage.attention.cuda.ordinary_cores import ALL
from minipage.attention.cuda.ptx import (
    bits_of_float,
    float_of_bits,
    mma_bfloats,
    mma_halves,
    pack_halves,
    prmt,
    shared_8_bytes,
    shared_16_bytes,
)

float32, uint32 = types.float32, types.uint32


def pieces(kv: Kind) -> tuple[Any, Any, float]:
    """What takes two numbers of 16 bits from rows of K and of V, [rows, words] uint32; and the unit of these numbers, a
    power of two by which they come out multiplied:

    (k, n, w): the w-th two numbers of row n
    (v, r, w, i): of rows r and r + 1, each the i-th of the w-th two numbers
    """
    unit = 1.0
    if kv.is_quantized:
        halves, unit = halves_of(kv)

        def k_piece(k, n, w):
            return halves(k[n, w // 2], w % 2)

        def v_piece(v, r, w, i):
            woven = prmt(v[r, w // 2], v[r + 1, w // 2], uint32(0x7362 if w % 2 else 0x5140))
            return halves(woven, i)
    else:

        def k_piece(k, n, w):
            return k[n, w]

        def v_piece(v, r, w, i):
            return prmt(v[r, w], v[r + 1, w], uint32(0x7632 if i else 0x5410))

    return device_function(k_piece), device_function(v_piece), unit


def maker_of_halves(kind: Kind, num_words: int) -> Any:
    """(words, i): turn words[i, :], a quarter of a row of q, into float16, divided by the power of two that leaves the
    row's largest number from 1 to 2. Returns that power. The three lanes next to this one have the rest of the row.

    From 2 ** 104 on, the power times one over the unit of int8 is infinite, and NaN comes out.
    """
    number = kind.number

    def as_halves(words, i):
        largest = float32(0)
        for w in range(num_words):
            largest = max(largest, abs(number(words[i, w], 0)), abs(number(words[i, w], 1)))
        largest = max(largest, cuda.shfl_xor_sync(ALL, largest, 1))
        largest = max(largest, cuda.shfl_xor_sync(ALL, largest, 2))
        exponent = bits_of_float(largest) & 0x7F800000  # of a float32, which counts from 127
        factor = float_of_bits(uint32(0x7F000000 - exponent))
        for w in range(num_words):
            low, high = number(words[i, w], 0), number(words[i, w], 1)
            words[i, w] = pack_halves(low * factor, high * factor)
        return float_of_bits(uint32(max(exponent, 0x00800000)))

    return device_function(as_halves)


def loader(num_words: int) -> Any:
    """(array, row, shared, i): 2 or 4 words from shared memory to array[row, :]."""

    def load_2(array, row, shared, i):
        array[row, 0], array[row, 1] = shared_8_bytes(shared, i)

    def load_4(array, row, shared, i):
        array[row, 0], array[row, 1], array[row, 2], array[row, 3] = shared_16_bytes(shared, i)

    return device_function(load_4 if num_words == 4 else load_2)


def multiplier(kind: Kind, halves: int = 2) -> Any:
    """(acc, j, a, b0, b1): acc[j, :] += a @ b, 16 x 16 with 16 x 8 numbers of this kind, in float32.

    halves: 1 if rows 8 to 15 are of no interest; then they take no registers in between.
    """
    mma = mma_halves if kind == FLOAT16 else mma_bfloats

    def multiply(acc, j, a, b0, b1):
        if halves == 1:
            acc[j, 0], acc[j, 1], _, _ = mma(a, (b0, b1), (acc[j, 0], acc[j, 1], float32(0), float32(0)))
        else:
            c = (acc[j, 0], acc[j, 1], acc[j, 2], acc[j, 3])
            acc[j, 0], acc[j, 1], acc[j, 2], acc[j, 3] = mma(a, (b0, b1), c)

    return device_function(multiply)
