"""Rung 5: 16 bytes a load, four loads of K and four of V under way at once, and one reading for a group of heads.

The kernel is minipage/attention/cuda/ordinary_cores.py. A lane loads 16 bytes, so 16 lanes have a row of 128 numbers
of two bytes, and a warp two tokens at a time; the machine code says LDG.E...128 (a test looks). Query heads that share
a KV head are computed by the same warp from the same registers. Here q and K are also multiplied two numbers at a time
(`packed_products`, by fma.bf16x2 or f16x2): eight products of a lane take four instructions instead of eight, and no
unpacking before them.

What it gains: an eighth of the load instructions of rung 4; at 32 query heads on 8 KV heads, a quarter of the reading
(from caches, if those were good); enough bytes under way to keep the memory busy. What the packed products cost: each
partial sum is rounded to 8 bits (11 for float16), which is why the engine leaves them out. What is left: shuffles,
softmax and sums take about a third of the time the memory takes, and more with eight heads in a group.
"""

from __future__ import annotations

from functools import partial

from minipage.attention.cuda.compat import device_function, types
from minipage.attention.cuda.kinds import FLOAT16
from minipage.attention.cuda.launch import choose_ordinary
from minipage.attention.cuda.ordinary_cores import Products, float_products, ordinary_kernel
from minipage.attention.cuda.ptx import fma_bfloats, fma_halves, pack_bfloats, pack_halves
from minipage.ladder.engine_kernel import decode_with

float32, uint32 = types.float32, types.uint32


def choose(q_kind, kv, head_size):
    products = packed_products if kv.num_bytes == 2 and q_kind == kv else float_products
    return choose_ordinary(q_kind, kv, head_size)._replace(kernel_for=partial(ordinary_kernel, products=products))


def packed_products(kind, rows, words):
    """Two at a time: a sum for even positions and one for odd, each rounded after every product."""
    fma, pack = (fma_halves, pack_halves) if kind == FLOAT16 else (fma_bfloats, pack_bfloats)
    number = kind.number

    def keep(q_kept, r, i, x):
        if i % 2 == 0:
            q_kept[r, i // 2] = pack(x, float32(0))
        else:
            q_kept[r, i // 2] |= pack(float32(0), x)

    def multiply(score, u, q_kept, k):
        for r in range(rows):
            sums = uint32(0)
            for w in range(words):
                sums = fma(q_kept[r, w], k[u, w], sums)
            score[u, r] = number(sums, 0) + number(sums, 1)

    return Products(uint32, words, device_function(keep), device_function(multiply))


decode = partial(decode_with, choose)
