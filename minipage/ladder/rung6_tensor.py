"""Rung 6: tensor cores.

The kernel is minipage/attention/cuda/tensor_cores.py. One instruction, mma.m16n8k16, multiplies 16 tokens of K with 8
rows of q for 16 positions: 2,048 products, where an ordinary instruction of a warp does 32. The query heads of a
group are the rows; those that are missing are multiplied for nothing, which costs no time. It takes head sizes 64 and
128 and numbers of two bytes (K and V also of one).

What it gains: a warp needs about 340 instructions for 8 KiB of K and V, however many heads share them, and so nothing
but the memory decides. For float32, which tensor cores would round to 11 bits, this rung is rung 5.
"""

from __future__ import annotations

from functools import partial

from minipage.attention.cuda.launch import choose_best
from minipage.ladder.engine_kernel import decode_with

decode = partial(decode_with, choose_best)
