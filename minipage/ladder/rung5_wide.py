"""Rung 5: 16 bytes a load, four loads of K and four of V under way at once, and one reading for a group of heads.

The kernel is minipage/attention/cuda/wide.py. A lane loads 16 bytes, so 16 lanes have a row of 128 numbers of two
bytes, and a warp two tokens at a time; the machine code says LDG.E...128 (a test looks). Query heads that share a KV
head are computed by the same warp from the same registers. Here q and K are also multiplied two numbers at a time
(fma.bf16x2, or f16x2): eight products of a lane take four instructions instead of eight, and no unpacking before them.

What it gains: an eighth of the load instructions of rung 4; at 32 query heads on 8 KV heads, a quarter of the reading
(from caches, if those were good); enough bytes under way to keep the memory busy. What the packed products cost: each
partial sum is rounded to 8 bits (11 for float16), which is why the engine leaves them out. What is left: shuffles,
softmax and sums take about a third of the time the memory takes, and more with eight heads in a group.
"""

from __future__ import annotations

from functools import partial

from minipage.attention.cuda.launch import wide_choice
from minipage.attention.cuda.wide import wide_kernel
from minipage.ladder.engine_kernel import decode_with


def choose(q_kind, kv, head_size):
    packed = kv.num_bytes == 2 and q_kind == kv
    return wide_choice(q_kind, kv, head_size)._replace(kernel_for=partial(wide_kernel, packed=packed))


decode = partial(decode_with, choose)
