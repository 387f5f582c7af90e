"""Rung 2: a warp for each query head.

The 32 lanes of a warp stand side by side in a row of K: lane i takes numbers i, i + 32, i + 64, ... A load of the warp
is then one piece of memory, of 64 bytes (two bytes a number), every one of which is used: the access is coalesced. Each
lane has a part of the score, and five shuffles, in which lanes exchange registers, add the parts up:

    lane   0   1   2   3   4   5   6   7         (8 lanes here)
           └─+─┘   └─+─┘   └─+─┘   └─+─┘         with the lane 1 away,
             └───+───┘       └───+───┘           2 away,
                 └───────+───────┘               4 away: now all of them know the sum

What it gains: no byte of a sector is wasted, and there are 32 times as many threads. What is left: K is read twice, and
a warp waits for its load of one token before it asks for the next.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import in_shape, layout
from minipage.attention.cuda.kinds import LOWEST, kind_of, reader
from minipage.attention.cuda.launch import LOG2_E
from minipage.attention.cuda.ptx import exp2

float32 = types.float32
WARP = 32


def decode(q, k_cache, v_cache, block_tables, context_lens, scale, out, stream=0):
    num_seqs, num_heads, head_size = layout(q).shape
    attend = kernel_for(kind_of(layout(q).dtype, "q"), head_size, layout(k_cache).shape[1])
    attend[(num_heads, num_seqs), WARP, external_stream(stream)](
        *map(in_shape, (q, k_cache, v_cache, block_tables, context_lens)), np.float32(scale * LOG2_E), in_shape(out)
    )


@device_function
def sum_of_lanes(x):
    for bit in (16, 8, 4, 2, 1):
        x += cuda.shfl_xor_sync(0xFFFFFFFF, x, bit)
    return x


@cache
def kernel_for(kind, head_size, block_size):
    number, stored = reader(kind), kind.stored
    MINE = -(-head_size // WARP)  # numbers of a row that a lane has

    def attend(q, k_cache, v_cache, block_tables, context_lens, scale, out):
        head, seq, lane = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        kv_head = head // (cuda.gridDim.x // k_cache.shape[2])
        mine = cuda.local.array(MINE, float32)
        acc = cuda.local.array(MINE, float32)
        for j in range(MINE):
            i = lane + j * WARP
            mine[j] = number(q[seq, head, i]) * scale if i < head_size else float32(0)
            acc[j] = float32(0)

        highest = LOWEST
        for token in range(context_lens[seq]):
            block, offset = block_tables[seq, token // block_size], token % block_size
            part = float32(0)
            for j in range(MINE):
                i = lane + j * WARP
                if i < head_size:
                    part += mine[j] * number(k_cache[block, offset, kv_head, i])
            highest = max(highest, sum_of_lanes(part))

        total = float32(0)
        for token in range(context_lens[seq]):
            block, offset = block_tables[seq, token // block_size], token % block_size
            part = float32(0)
            for j in range(MINE):
                i = lane + j * WARP
                if i < head_size:
                    part += mine[j] * number(k_cache[block, offset, kv_head, i])
            weight = exp2(sum_of_lanes(part) - highest)
            total += weight
            for j in range(MINE):
                i = lane + j * WARP
                if i < head_size:
                    acc[j] += weight * number(v_cache[block, offset, kv_head, i])
        for j in range(MINE):
            i = lane + j * WARP
            if i < head_size:
                out[seq, head, i] = stored(acc[j] / total)

    return kernel(attend)
