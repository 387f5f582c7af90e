"""Rung 4: several blocks for each context, and a second pass ("flash-decoding", Dao et al. 2023).

The context is cut into splits of 512 tokens, each the work of a block as in rung 3. A block cannot wait for another, so
each leaves its result and the logarithm of its total weight in a workspace, and a second kernel joins them:

    tokens   0 ....... 511   512 ....... 1023   1024 ... 1200
    pass 1     block 0          block 1           block 2          result, log of its total
    pass 2     └─────────────────┴─────────────────┘               their average, weighted by the totals

What it gains: a batch of one sequence of 64K tokens has 128 blocks for each head instead of one. For large batches it
gains little: they had enough blocks before. What is left: a lane loads 2 bytes at a time, and each query head reads K
and V for itself, though four or eight of them share the same.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from minipage.attention.cuda.compat import cuda, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import empty, in_shape, layout
from minipage.attention.cuda.kinds import LOWEST, kind_of, reader
from minipage.attention.cuda.launch import LOG2_E
from minipage.attention.cuda.ptx import exp2, log2
from minipage.ladder.rung2_warp import sum_of_lanes

float32 = types.float32
WARP, NUM_WARPS = 32, 4
SPLIT_SIZE = 512  # tokens


def decode(q, k_cache, v_cache, block_tables, context_lens, scale, out, stream=0):
    num_seqs, num_heads, head_size = layout(q).shape
    kind, on = kind_of(layout(q).dtype, "q"), external_stream(stream)
    # As many splits as the longest context could have: how long it is, only the GPU knows.
    num_splits = -(-layout(block_tables).shape[1] * layout(k_cache).shape[1] // SPLIT_SIZE)
    results = empty(q, (num_seqs, num_heads, num_splits, head_size), "float32")
    log_totals = empty(q, (num_seqs, num_heads, num_splits), "float32")
    attend, join = kernels_for(kind, head_size, layout(k_cache).shape[1])
    attend[(num_splits, num_heads, num_seqs), NUM_WARPS * WARP, on](
        *map(in_shape, (q, k_cache, v_cache, block_tables, context_lens)), np.float32(scale * LOG2_E),
        in_shape(results), in_shape(log_totals),
    )  # fmt: skip
    join[(num_heads, num_seqs), head_size, on](
        in_shape(results), in_shape(log_totals), in_shape(context_lens), in_shape(out)
    )


@cache
def kernels_for(kind, head_size, block_size):
    number, stored = reader(kind), kind.stored
    MINE = -(-head_size // WARP)  # numbers of a row that a lane has

    def attend(q, k_cache, v_cache, block_tables, context_lens, scale, results, log_totals):
        split, head, seq = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        start, stop = split * SPLIT_SIZE, min((split + 1) * SPLIT_SIZE, context_lens[seq])
        if start >= stop:
            return
        lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
        kv_head = head // (cuda.gridDim.y // k_cache.shape[2])
        mine = cuda.local.array(MINE, float32)
        acc = cuda.local.array(MINE, float32)
        for j in range(MINE):
            i = lane + j * WARP
            mine[j] = number(q[seq, head, i]) * scale if i < head_size else float32(0)
            acc[j] = float32(0)

        highest, total = LOWEST, float32(0)
        for token in range(start + warp, stop, NUM_WARPS):
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
            results[seq, head, split, i] = x / total
            if i == 0:
                log_totals[seq, head, split] = highest + log2(total)

    def join(results, log_totals, context_lens, out):
        head, seq, i = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        num_splits = (context_lens[seq] + SPLIT_SIZE - 1) // SPLIT_SIZE
        highest, total, x = LOWEST, float32(0), float32(0)
        for split in range(num_splits):
            highest = max(highest, log_totals[seq, head, split])
        for split in range(num_splits):
            share = exp2(log_totals[seq, head, split] - highest)
            total += share
            x += share * results[seq, head, split, i]
        out[seq, head, i] = stored(x / total)

    return kernel(attend), kernel(join)
