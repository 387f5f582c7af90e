"""Rung 1: one thread for each query head of each sequence.

The obvious kernel. A thread walks through its sequence's block table twice: once to find the highest score, once more
to weigh the rows of V, since exp(score) alone might be infinite.

What it costs: neighbouring threads are neighbouring heads, so they read numbers that lie 256 bytes apart (head size
128, two bytes each). Memory comes in sectors of 32 bytes, of which a thread uses 2 at a time; the rest is wanted soon,
but by then other threads' sectors may have taken its place in the cache. And a batch of 32 sequences with 32 heads is
1,024 threads: the chip could run two hundred times as many, and needs them to have enough loads under way.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from minipage.attention.cuda.compat import cuda, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import in_shape, layout
from minipage.attention.cuda.kinds import LOWEST, kind_of, reader
from minipage.attention.cuda.launch import LOG2_E
from minipage.attention.cuda.ptx import exp2

float32 = types.float32


def decode(q, k_cache, v_cache, block_tables, context_lens, scale, out, stream=0):
    num_seqs, num_heads, head_size = layout(q).shape
    attend = kernel_for(kind_of(layout(q).dtype, "q"), head_size, layout(k_cache).shape[1])
    attend[num_seqs, num_heads, external_stream(stream)](
        *map(in_shape, (q, k_cache, v_cache, block_tables, context_lens)), np.float32(scale * LOG2_E), in_shape(out)
    )


@cache
def kernel_for(kind, head_size, block_size):
    number, stored = reader(kind), kind.stored

    def attend(q, k_cache, v_cache, block_tables, context_lens, scale, out):
        seq, head = cuda.blockIdx.x, cuda.threadIdx.x
        kv_head = head // (cuda.blockDim.x // k_cache.shape[2])

        highest = LOWEST
        for token in range(context_lens[seq]):
            block, offset = block_tables[seq, token // block_size], token % block_size
            score = float32(0)
            for i in range(head_size):
                score += number(q[seq, head, i]) * number(k_cache[block, offset, kv_head, i])
            highest = max(highest, score * scale)

        acc = cuda.local.array(head_size, float32)
        for i in range(head_size):
            acc[i] = float32(0)
        total = float32(0)
        for token in range(context_lens[seq]):
            block, offset = block_tables[seq, token // block_size], token % block_size
            score = float32(0)
            for i in range(head_size):
                score += number(q[seq, head, i]) * number(k_cache[block, offset, kv_head, i])
            weight = exp2(score * scale - highest)
            total += weight
            for i in range(head_size):
                acc[i] += weight * number(v_cache[block, offset, kv_head, i])
        for i in range(head_size):
            out[seq, head, i] = stored(acc[i] / total)

    return kernel(attend)
