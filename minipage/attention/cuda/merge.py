"""The second pass of a split context: join the results of its parts.

Each part left its result and the logarithm of its total weight. The whole is their average, weighted by their totals:

    out = sum of exp2(log_total) * result / sum of exp2(log_total)
"""

from __future__ import annotations

from functools import cache
from typing import Any

from minipage.attention.cuda.compat import cuda, kernel, types
from minipage.attention.cuda.numbers import Kind
from minipage.attention.cuda.ptx import exp2

float32 = types.float32
LOWEST = -1e30


@cache
def merge_kernel(out_kind: Kind, head_size: int) -> Any:
    """One block for each head of each sequence (grid: heads, sequences), one thread for each column."""
    stored = out_kind.stored

    def merge(partial, context_lens, query_start_loc, out, num_splits, split_size):
        head, seq, column = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        num_heads = cuda.gridDim.x
        token = query_start_loc[seq]
        if query_start_loc[seq + 1] - token != 1 or column >= head_size:
            return
        first = (seq * num_heads + head) * num_splits
        log_totals = cuda.gridDim.y * num_heads * num_splits * head_size  # they come after all results
        used = (context_lens[seq] + split_size - 1) // split_size
        highest, total, acc = float32(LOWEST), float32(0), float32(0)
        for i in range(first, first + used):
            highest = max(highest, partial[log_totals + i])
        for i in range(first, first + used):
            weight = exp2(partial[log_totals + i] - highest)
            total += weight
            acc += weight * partial[i * head_size + column]
        out[(token * num_heads + head) * head_size + column] = stored(acc / total if used > 0 else float32(0))

    return kernel(merge)
