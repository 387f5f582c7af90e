"""Joining the results of the parts of a context: those of the warps of a block, and of the blocks of a split context.

A warp has its highest score, and total and sums relative to it: they count exp2(its highest - highest of all). A block
leaves its result and the logarithm of its total. The whole is the average of the results, weighted by their totals:

    out = sum of exp2(log_total) * result / sum of exp2(log_total)

No block can wait for another. So every block of a context leaves what it has found in the workspace and adds one to the
context's counter, and the one that finds the others counted already joins them all. A block begins in one context and
ends in another, which both may be split: it has two places in the workspace.

    workspace   log_totals [num_blocks, 2, rows] | results [num_blocks, 2, rows, head_size] | ... | counters

where num_blocks is that of the whole grid, and rows are those of q in a tile. The counters are 0 before and after, and
counted from the end, so that what a grid of another size leaves is not in their place.
"""

from __future__ import annotations

from typing import Any

from minipage.attention.cuda.compat import cuda, device_function, types
from minipage.attention.cuda.kinds import LOWEST
from minipage.attention.cuda.ptx import add_in_turn, bits_of_float, exp2, log2

float32, int32 = types.float32, types.int32
WARP = 32


@device_function
def place_of(block, first_block):
    """Where a block leaves its part of a context whose first part is that of `first_block`.

    A block's place 0 is for the context that it begins within, place 1 for the one that it ends within.
    """
    return int32((block * cuda.gridDim.x + cuda.blockIdx.x) * 2 + (1 if block == first_block else 0))


@device_function
def is_zero(x):
    """Of a float32 that is not below 0. Comparing numbers would not do: under fastmath NaN may be taken for anything,
    and a NaN of K has to come out."""
    return bits_of_float(x) == 0


def joiner(
    parts: int, heads: int, tokens: int, heads_per_kv: int, head_size: int, num_threads: int, stored: Any
) -> Any:
    """What the warps of one block have found in their parts of a context, joined and written to a place of the
    workspace, or to `out` if the place is -1.

    found: shared memory with the sums [parts, rows, head_size], the highest scores [parts, rows] and the totals
    [parts, rows].
    """
    rows = heads * tokens
    HIGHEST = parts * rows * head_size
    TOTALS = HIGHEST + parts * rows

    def join(found, out, workspace, place, q_start, num_queries, first, kv_head, head_tile, num_kv_heads):
        num_blocks = cuda.gridDim.x * cuda.gridDim.y
        for i in range(cuda.threadIdx.x, rows * head_size, num_threads):
            r, column = i // head_size, i % head_size
            token, head = first + r // heads, head_tile * heads + r % heads
            if token < num_queries and head < heads_per_kv:
                highest = LOWEST
                total = float32(0)
                x = float32(0)
                for part in range(parts):
                    highest = max(highest, found[HIGHEST + part * rows + r])
                for part in range(parts):
                    share = exp2(found[HIGHEST + part * rows + r] - highest)
                    total += share * found[TOTALS + part * rows + r]
                    x += share * found[part * rows * head_size + i]
                x = float32(0) if is_zero(total) else x / total  # 0: a context without tokens
                if place < 0:
                    row = ((q_start + token) * num_kv_heads + kv_head) * heads_per_kv + head
                    out[row * head_size + column] = stored(x)
                else:
                    workspace[2 * num_blocks * rows + place * rows * head_size + i] = x
                    if column == 0:
                        workspace[place * rows + r] = highest + log2(total)

    return device_function(join)


def merger(heads: int, heads_per_kv: int, head_size: int, num_threads: int, stored: Any) -> Any:
    """What the blocks first_block to last_block of this row of the grid have found, joined by the last to come."""
    head_tiles = -(-heads_per_kv // heads)
    MINE = -(-head_size // WARP)  # numbers of a row that a lane has
    AT_ONCE = 8  # parts that a warp has under way

    def merge(out, workspace, first_block, last_block, token, num_kv_heads):
        num_blocks = cuda.gridDim.x * cuda.gridDim.y
        counter = len(workspace) - 1 - (first_block * cuda.gridDim.x + cuda.blockIdx.x)
        is_last = int32(0)
        cuda.syncthreads()
        if cuda.threadIdx.x == 0 and add_in_turn(workspace, counter, float32(1)) == last_block - first_block:
            is_last = int32(1)
        if not cuda.syncthreads_or(is_last):
            return
        kv_head, head_tile = cuda.blockIdx.x // head_tiles, cuda.blockIdx.x % head_tiles
        lane = cuda.threadIdx.x % WARP
        log_total = cuda.local.array(AT_ONCE, float32)
        x = cuda.local.array((AT_ONCE, MINE), float32)
        acc = cuda.local.array(MINE, float32)
        for r in range(cuda.threadIdx.x // WARP, heads, num_threads // WARP):  # a warp for each row of q
            highest, total = LOWEST, float32(0)
            for j in range(MINE):
                acc[j] = float32(0)
            for block in range(first_block, last_block + 1, AT_ONCE):
                new = highest
                for u in range(AT_ONCE):
                    row = place_of(min(block + u, last_block), first_block) * heads + r
                    log_total[u] = workspace[row] if block + u <= last_block else LOWEST
                    new = max(new, log_total[u])
                    for j in range(MINE):
                        column = min(lane + j * WARP, head_size - 1)
                        x[u, j] = workspace[2 * num_blocks * heads + row * head_size + column]
                shrink = exp2(highest - new)
                highest, total = new, total * shrink
                for j in range(MINE):
                    acc[j] *= shrink
                for u in range(AT_ONCE):
                    share = exp2(log_total[u] - new)
                    total += share
                    for j in range(MINE):
                        acc[j] += share * x[u, j]
            head = head_tile * heads + r
            for j in range(MINE):
                column = lane + j * WARP
                if column < head_size and head < heads_per_kv:
                    at = ((token * num_kv_heads + kv_head) * heads_per_kv + head) * head_size + column
                    out[at] = stored(acc[j] / total)
        if cuda.threadIdx.x == 0:
            workspace[counter] = float32(0)

    return device_function(merge)
