"""Joining what was found in the parts of a context: of the warps of a block, and of the blocks of a split context.

A warp has its highest score, and total and sums relative to it: they count exp2(its highest - highest of all). A block
leaves its result and the logarithm of its total. The whole is the average of the results, weighted by their totals:

    out = sum of exp2(log_total) * result / sum of exp2(log_total)
"""

from __future__ import annotations

from functools import cache
from typing import Any

from minipage.attention.cuda.compat import cuda, device_function, kernel, types
from minipage.attention.cuda.numbers import LOWEST, Kind
from minipage.attention.cuda.ptx import exp2, log2

float32 = types.float32
WARP, MERGE_WARPS = 32, 8


def joiner(parts: int, heads: int, tokens: int, group: int, head_size: int, num_threads: int, stored: Any) -> Any:
    """What the warps of one block have found in their parts of a context, joined in shared memory and written.

    all_highest, all_total: [parts, rows]; all_acc: [parts * rows * head_size]. The result goes to `out`, or, if the
    context is cut into several splits, to `partial`: [num_seqs, num_heads, num_splits, head_size], and after all of
    them the logarithms of the totals, [num_seqs, num_heads, num_splits].
    """

    rows = heads * tokens

    def join(
        all_highest, all_total, all_acc, out, partial, seq, num_seqs, q_start, num_queries, first,
        kv_head, head_tile, num_kv_heads, split, num_splits, context,
    ):  # fmt: skip
        num_heads = num_kv_heads * group
        for i in range(cuda.threadIdx.x, rows * head_size, num_threads):
            r, column = i // head_size, i % head_size
            token, head = first + r // heads, head_tile * heads + r % heads
            if token < num_queries and head < group:
                highest, total, x = LOWEST, float32(0), float32(0)
                for part in range(parts):
                    highest = max(highest, all_highest[part, r])
                for part in range(parts):
                    share = exp2(all_highest[part, r] - highest)
                    total += share * all_total[part, r]
                    x += share * all_acc[(part * rows + r) * head_size + column]
                x = x / total if context > 0 else float32(0)
                head += kv_head * group
                if num_splits == 1:
                    out[((q_start + token) * num_heads + head) * head_size + column] = stored(x)
                else:
                    row = (seq * num_heads + head) * num_splits + split
                    partial[row * head_size + column] = x
                    if column == 0:
                        partial[num_seqs * num_heads * num_splits * head_size + row] = highest + log2(total)

    return device_function(join)


@cache
def merge_kernel(out_kind: Kind, head_size: int) -> Any:
    """A warp for each head of each sequence; grid: heads / MERGE_WARPS, sequences."""
    stored = out_kind.stored
    MINE = -(-head_size // WARP)  # columns of a lane

    def merge(partial, context_lens, query_start_loc, out, num_heads, num_splits, split_size):
        seq, lane = cuda.blockIdx.y, cuda.threadIdx.x % WARP
        head = cuda.blockIdx.x * MERGE_WARPS + cuda.threadIdx.x // WARP
        token = query_start_loc[seq]
        used = (context_lens[seq] + split_size - 1) // split_size
        if head >= num_heads or used <= 1 or query_start_loc[seq + 1] - token != 1:
            return
        first = (seq * num_heads + head) * num_splits
        log_totals = cuda.gridDim.y * num_heads * num_splits * head_size + first  # they come after all results
        highest = LOWEST
        for i in range(lane, used, WARP):
            highest = max(highest, partial[log_totals + i])
        for bit in (16, 8, 4, 2, 1):
            highest = max(highest, cuda.shfl_xor_sync(0xFFFFFFFF, highest, bit))
        acc = cuda.local.array(MINE, float32)
        for j in range(MINE):
            acc[j] = float32(0)
        total = float32(0)
        for i in range(used):
            weight = exp2(partial[log_totals + i] - highest)
            total += weight
            for j in range(MINE):
                if lane + j * WARP < head_size:
                    acc[j] += weight * partial[(first + i) * head_size + lane + j * WARP]
        for j in range(MINE):
            if lane + j * WARP < head_size:
                out[(token * num_heads + head) * head_size + lane + j * WARP] = stored(acc[j] / total)

    return kernel(merge)
