"""Products of whole numbers: those of 16 bits with those of 8, two at a time, summed up in 32 bits.

    a   a0 a1  a2 a3  ...    int16, two of a row beside each other: one int32
    b   [w0 w1] [w0 w1] ...  int8, two rows beside each other, for each column
        [w2 w3] [w2 w3]
    sums of 16 columns  +=  a0 * w0 + a1 * w1        one instruction where the processor has it, as float32 takes for
                                                     one product: so this is twice as fast

Whole numbers are summed up exactly, so a row gives the same bits among others as alone.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types

from minipage.simd.matrix import load_tile, store_tile
from minipage.simd.options import compiled
from minipage.simd.vectors import FAST, FLOAT, INT, LANES, Vector, address, filled, in_python, part, prefetch, splat

LARGEST_A = 32_767
MOST_PAIRS = 256  # products of at most 127 * LARGEST_A, of which a sum of 32 bits holds twice as many

SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)
PAIRS = Vector(types.int32)  # LANES times two int16, or LANES sums


@in_python(lambda b, index: part(b, index, 2 * LANES).astype(np.int16).view(np.int32))
def load_pairs(typing_context, b, index):
    """LANES pairs of the int8 at b[index], each of them two int16."""

    def generate(context, builder, signature, arguments):
        stored = ir.VectorType(ir.IntType(8), 2 * LANES).as_pointer()
        stored = builder.load(builder.bitcast(address(context, builder, signature, arguments), stored), align=1)
        return builder.bitcast(builder.sext(stored, SHORTS), INT)

    return PAIRS(b, index), generate


def _products(sums, pair, pairs):
    a, b = (np.asarray(p, np.int32).view(np.int16).reshape(-1, 2) for p in ([pair], pairs))  # [1, 2], [LANES, 2]
    return sums + (a.astype(np.int32) * b).sum(axis=1, dtype=np.int32)  # [LANES]


@in_python(_products)
def add_pairs(typing_context, sums, pair, pairs):
    """sums + the first of `pair` times the firsts of `pairs` + the second times the seconds."""

    def generate(context, builder, signature, arguments):
        sums, pair, pairs = arguments
        wide = ir.VectorType(ir.IntType(32), 2 * LANES)
        a, b = (builder.sext(builder.bitcast(p, SHORTS), wide) for p in (splat(builder, pair), pairs))
        products = builder.mul(a, b)  # LLVM knows this and the next three lines as one instruction
        for i in (0, 1):
            mask = ir.Constant(INT, list(range(i, 2 * LANES, 2)))
            sums = builder.add(sums, builder.shuffle_vector(products, products, mask))
        return sums

    return PAIRS(sums, pair, pairs), generate


@in_python(lambda vector, sums: vector + sums.astype(np.float32))
def add_whole(typing_context, vector, sums):
    """vector + sums, as float32"""

    def generate(context, builder, signature, arguments):
        return builder.fadd(arguments[0], builder.sitofp(arguments[1], FLOAT), flags=FAST)

    return vector(vector, sums), generate


@compiled
def add_whole_product(a, b, c, coming):
    """c += a @ b: a [rows, pairs] of int32, b [pairs, 4 * LANES] of int8, c [rows, 2 * LANES] of float32.

    It goes as `matrix.add_product` goes; in between, sums of whole numbers become those of c. `coming`, the b of the
    next product, is fetched from memory meanwhile: one of its rows after every `stretch` pairs of a row of a.
    """
    last, zero, fetched, stretch = len(a) - 1, filled(np.int32(0)), 0, (len(a) + 7) // 8
    nothing = (zero, zero, zero, zero, zero, zero, zero, zero)
    for start in range(0, len(b), MOST_PAIRS):
        stop = min(start + MOST_PAIRS, len(b))
        for r in range(0, len(a), 8):
            s, upper, lower = min(r + 4, last), nothing, nothing
            if last < r + 4:  # all rows are in the upper tile
                for i in range(start, stop):
                    upper = add_pairs_to_tile(
                        upper, a, r, last, i, load_pairs(b, (i, 0)), load_pairs(b, (i, 2 * LANES))
                    )
            else:
                for begin in range(start, stop, stretch):
                    prefetch(coming, (min(fetched, len(b) - 1),))
                    fetched += 1
                    for i in range(begin, min(begin + stretch, stop)):
                        bd, be = load_pairs(b, (i, 0)), load_pairs(b, (i, 2 * LANES))
                        upper = add_pairs_to_tile(upper, a, r, last, i, bd, be)
                        lower = add_pairs_to_tile(lower, a, s, last, i, bd, be)
            upper_c, lower_c = load_tile(c, r, last, 0), load_tile(c, s, last, 0)
            store_tile(c, s, last, 0, add_whole_tile(lower_c, lower))
            store_tile(c, r, last, 0, add_whole_tile(upper_c, upper))  # after the other, as in add_product


@compiled
def add_pairs_to_tile(tile, a, r, last, i, bd, be):
    s, t, u = min(r + 1, last), min(r + 2, last), min(r + 3, last)
    rd, re, sd, se, td, te, ud, ue = tile
    return (
        add_pairs(rd, a[r, i], bd), add_pairs(re, a[r, i], be), add_pairs(sd, a[s, i], bd), add_pairs(se, a[s, i], be),
        add_pairs(td, a[t, i], bd), add_pairs(te, a[t, i], be), add_pairs(ud, a[u, i], bd), add_pairs(ue, a[u, i], be),
    )  # fmt: skip


@compiled
def add_whole_tile(tile, sums):
    rd, re, sd, se, td, te, ud, ue = tile
    a, b, c, d, e, f, g, h = sums
    return (
        add_whole(rd, a), add_whole(re, b), add_whole(sd, c), add_whole(se, d),
        add_whole(td, e), add_whole(te, f), add_whole(ud, g), add_whole(ue, h),
    )  # fmt: skip


@compiled
def round_rows(x, bits, codes, scales):
    """x [rows, n] of float32, of which `bits` are the bits in int32, as codes [rows, n] times scales [rows].

    Without their signs, bits are in the order of the numbers that they stand for, and compare faster; infinities and
    NaN are the largest. Of a row that has such a one, the codes are 0 and the scale is none either.
    """
    for t in range(len(x)):
        highest = np.int32(0)
        for i in range(x.shape[1]):
            highest = max(highest, np.int32(bits[t, i] & np.int32(0x7FFFFFFF)))
        largest = np.int32(highest).view(np.float32)
        scales[t] = largest / np.float32(LARGEST_A)
        factor = np.float32(LARGEST_A) / largest if np.float32(1e-30) < largest < np.float32(np.inf) else np.float32(0)
        codes[t] = 0
        if factor > 0:
            for i in range(x.shape[1]):
                codes[t, i] = np.int16(np.rint(x[t, i] * factor))
