"""Rung 3: a block of warps for each query head, and one pass.

Four warps share the context: warp w takes tokens w, w + 4, w + 8, ... Each keeps its highest score so far, the total of
the weights relative to it, and the weighted sum of the rows of V; when a higher score turns up, total and sum are
scaled down. That is the online softmax (Milakov and Gimelshein, arXiv 1805.02867), and K has to be read only once. At
the end the warps leave what they have in shared memory, which all threads of a block can read, and it is joined there.

What it gains: a third less to read (K and V, instead of K twice and V), and four times as many loads under way. What is
left: a sequence has only as many blocks as heads, so a batch of one long sequence uses a quarter of the chip.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from minipage.attention.cuda.compat import cuda, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import in_shape, layout
from minipage.attention.cuda.kinds import LOWEST, kind_of, reader
from minipage.attention.cuda.launch import LOG2_E
from minipage.attention.cuda.ptx import exp2
from minipage.ladder.rung2_warp import sum_of_lanes

float32 = types.float32
WARP, NUM_WARPS = 32, 4


def decode(q, k_cache, v_cache, block_tables, context_lens, scale, out, stream=0):
    num_seqs, num_heads, head_size = layout(q).shape
    attend = kernel_for(kind_of(layout(q).dtype, "q"), head_size, layout(k_cache).shape[1])
    attend[(num_heads, num_seqs), NUM_WARPS * WARP, external_stream(stream)](
        *map(in_shape, (q, k_cache, v_cache, block_tables, context_lens)), np.float32(scale * LOG2_E), in_shape(out)
    )


@cache
def kernel_for(kind, head_size, block_size):
    number, stored = reader(kind), kind.stored
    MINE = -(-head_size // WARP)  # numbers of a row that a lane has

    def attend(q, k_cache, v_cache, block_tables, context_lens, scale, out):
        head, seq = cuda.blockIdx.x, cuda.blockIdx.y
        lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
        kv_head = head // (cuda.gridDim.x // k_cache.shape[2])
        mine = cuda.local.array(MINE, float32)
        acc = cuda.local.array(MINE, float32)
        for j in range(MINE):
            i = lane + j * WARP
            mine[j] = number(q[seq, head, i]) * scale if i < head_size else float32(0)
            acc[j] = float32(0)

        highest, total = LOWEST, float32(0)
        for token in range(warp, context_lens[seq], NUM_WARPS):
            block, offset = block_tables[seq, token // block_size], token % block_size
            part = float32(0)
            for j in range(MINE):
                i = lane + j * WARP
                if i < head_size:
                    part += mine[j] * number(k_cache[block, offset, kv_head, i])
            score = sum_of_lanes(part)
            new = max(highest, score)
            shrink, weight = exp2(highest - new), exp2(score - new)
            highest, total = new, total * shrink + weight
            for j in range(MINE):
                i = lane + j * WARP
                if i < head_size:
                    acc[j] = acc[j] * shrink + weight * number(v_cache[block, offset, kv_head, i])

        all_highest = cuda.shared.array(NUM_WARPS, float32)
        all_total = cuda.shared.array(NUM_WARPS, float32)
        all_acc = cuda.shared.array((NUM_WARPS, head_size), float32)
        all_highest[warp], all_total[warp] = highest, total
        for j in range(MINE):
            i = lane + j * WARP
            if i < head_size:
                all_acc[warp, i] = acc[j]
        cuda.syncthreads()
        for i in range(cuda.threadIdx.x, head_size, NUM_WARPS * WARP):
            highest, total, x = LOWEST, float32(0), float32(0)
            for w in range(NUM_WARPS):
                highest = max(highest, all_highest[w])
            for w in range(NUM_WARPS):
                share = exp2(all_highest[w] - highest)
                total += share * all_total[w]
                x += share * all_acc[w, i]
            out[seq, head, i] = stored(x / total)

    return kernel(attend)
