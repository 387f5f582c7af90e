"""Paged attention on the GPU's ordinary cores: any kinds of numbers, any number of query heads for each KV head.

A block of four warps takes some rows of q that need the same K and V: the query heads that share a KV head, and in a
prompt several tokens of each. Every warp walks over its share of the tokens with an online softmax of its own, and the
sixteen bytes that a lane loads are the same piece of every row of K and V that it sees:

    warp      lanes 0-15   one token's K, 8 numbers of bfloat16 a lane      so two tokens with one load, head size 128;
              lanes 16-31  the next token's                                 UNROLL loads are on their way at a time

    score     each lane multiplies its 8 numbers, shuffles add up the lanes of a token
    softmax   each group of lanes keeps highest score and total for its own tokens
    V         each lane adds weight * its 8 numbers to its 8 sums
    at last   warps and groups of lanes meet in shared memory: what one of them found counts exp2(its highest - highest)

A long context is the work of several blocks ("flash-decoding", Dao et al. 2023), so that few long contexts fill the
chip as well as many short ones. `tiles.py` cuts, `merge.py` joins what they find. If contexts are cut into splits of a
fixed number of tokens, what else is in the batch changes not a bit of the result; equal shares are faster.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from minipage.attention.cuda.compat import cuda, device_function, types
from minipage.attention.cuda.merge import joiner, merger
from minipage.attention.cuda.numbers import FLOAT16, LOWEST, Kind
from minipage.attention.cuda.ptx import (
    exp2,
    fma_bfloats,
    fma_halves,
    load_8_bytes,
    load_16_bytes,
    pack_bfloats,
    pack_halves,
)
from minipage.attention.cuda.tiles import ragged_kernel
from minipage.errors import KernelArgumentError

float32, int32, uint32 = types.float32, types.int32, types.uint32

WARP = 32
NUM_WARPS = 4
NUM_THREADS = NUM_WARPS * WARP
UNROLL = 4  # loads of K, and of V, that a warp has under way
NUMBERS = 32  # of q, and of the result, that a lane keeps in registers
ALL = 0xFFFFFFFF  # the lanes that take part in a shuffle


def words_per_lane(head_size: int, kv: Kind) -> int:
    """How many words of a row one lane loads at once: 4, 2 or 1. Raises KernelArgumentError if no kernel can."""
    row_bytes = head_size * kv.num_bytes
    most = 2 if kv.num_bytes == 1 else 4  # of bytes 8, for each is a number to keep
    for words in (4, 2, 1):
        if words <= most and row_bytes % (4 * words) == 0 and row_bytes <= 4 * words * WARP:
            return words
    raise KernelArgumentError(
        f"head_size {head_size} in {kv.name}: the CUDA kernels read rows of K and V that are a multiple of 4, 8 or 16 "
        f"bytes and at most {WARP} times that; these are {row_bytes} bytes."
    )


def rows_per_tile(head_size: int, kv: Kind) -> int:
    """How many rows of q a block works on."""
    return NUMBERS // (words_per_lane(head_size, kv) * kv.per_word)


@cache
def wide_kernel(
    q_kind: Kind, kv: Kind, head_size: int, block_size: int, group: int, heads: int, tokens: int, packed: bool = False
) -> Any:
    """The kernel for these numbers and sizes.

    Args:
        group: query heads of a KV head.
        heads, tokens: a tile of q is `heads` of the group's heads for each of `tokens` tokens; 1 token in decodes.
        packed: multiply q and K two numbers at a time, in their own 16 bits; less exact, so the engine does not.
    """
    assert not packed or (q_kind == kv and kv.num_bytes == 2)
    WORDS = words_per_lane(head_size, kv)
    PER_WORD = kv.per_word
    COLUMNS = WORDS * PER_WORD  # numbers of a row that one lane has
    LANES = 1 << (-(-head_size // COLUMNS) - 1).bit_length()  # for a row; a power of two
    AT_ONCE = WARP // LANES  # tokens that one load of a warp brings
    STEP = AT_ONCE * UNROLL
    BLOCK_STEP = STEP * NUM_WARPS
    PARTS = AT_ONCE * NUM_WARPS
    ROWS = heads * tokens
    HIGHEST, TOTALS = PARTS * ROWS * head_size, PARTS * ROWS * (head_size + 1)  # where they are in shared memory
    FOUND = PARTS * ROWS * (head_size + 2)
    ROW_WORDS = head_size * kv.num_bytes // 4
    HEAD_TILES = -(-group // heads)
    QUANTIZED, PREFILL = kv.is_quantized, tokens > 1
    Q_PER_WORD, q_number, number = q_kind.per_word, q_kind.number, kv.number
    load, dot, pack = loader(WORDS), packed_dot(kv, WORDS), pack_halves if kv == FLOAT16 else pack_bfloats
    join = joiner(PARTS, heads, tokens, group, head_size, NUM_THREADS, q_kind.stored)

    def attend_tile(
        seq, first, start, stop, result_at, q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens,
        query_start_loc, out, workspace, scale, q_stride, max_blocks, num_kv_heads,
    ):  # fmt: skip
        # which rows of q, which tokens of K and V
        kv_head, head_tile = cuda.blockIdx.x // HEAD_TILES, cuda.blockIdx.x % HEAD_TILES
        context, q_start = context_lens[seq], query_start_loc[seq]
        num_queries = query_start_loc[seq + 1] - q_start
        seen_before = context - num_queries + 1  # query i sees seen_before + i tokens
        if PREFILL:
            stop = seen_before + min(first + tokens, num_queries) - 1

        lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
        part, column = lane // LANES, lane % LANES * COLUMNS
        is_inside = column < head_size
        q_row = cuda.local.array((ROWS, COLUMNS), float32)
        q_pair = cuda.local.array((ROWS, WORDS), uint32)
        acc = cuda.local.array((ROWS, COLUMNS), float32)
        highest = cuda.local.array(ROWS, float32)
        total = cuda.local.array(ROWS, float32)
        for r in range(ROWS):
            token, head = first + r // heads, head_tile * heads + r % heads
            is_row = is_inside and token < num_queries and head < group
            at = (q_start + token) * q_stride + (kv_head * group + head) * head_size + column
            highest[r], total[r] = LOWEST, float32(0)
            for i in range(COLUMNS):
                x = q_number(q[(at + i) // Q_PER_WORD], (at + i) % Q_PER_WORD) if is_row else float32(0)
                q_row[r, i], acc[r, i] = x * scale, float32(0)
            if packed:
                for w in range(WORDS):
                    q_pair[r, w] = pack(q_row[r, 2 * w], q_row[r, 2 * w + 1])

        k = cuda.local.array((UNROLL, WORDS), uint32)
        v = cuda.local.array((UNROLL, WORDS), uint32)
        k_scale = cuda.local.array(UNROLL, float32)
        v_scale = cuda.local.array(UNROLL, float32)
        score = cuda.local.array((UNROLL, ROWS), float32)
        word = column // PER_WORD if is_inside else 0
        for base in range(start + warp * STEP, stop, BLOCK_STEP):
            for u in range(UNROLL):
                token = min(base + u * AT_ONCE + part, stop - 1)  # past the end: the last one again, with weight 0
                slot = block_tables[seq * max_blocks + token // block_size] * block_size + token % block_size
                row = slot * num_kv_heads + kv_head
                load(k, u, k_cache, row * ROW_WORDS + word)
                load(v, u, v_cache, row * ROW_WORDS + word)
                if QUANTIZED:
                    k_scale[u], v_scale[u] = k_scales[row], v_scales[row]
            for u in range(UNROLL):
                for r in range(ROWS):
                    score[u, r] = dot(q_pair, r, k, u) if packed else float32(0)
                for w in range(0 if packed else WORDS):
                    for i in range(PER_WORD):
                        x = number(k[u, w], i)
                        for r in range(ROWS):
                            score[u, r] += q_row[r, w * PER_WORD + i] * x
                for r in range(ROWS):
                    x = score[u, r]
                    bit = LANES // 2
                    while bit > 0:
                        x += cuda.shfl_xor_sync(ALL, x, bit)
                        bit //= 2
                    if QUANTIZED:
                        x *= k_scale[u]
                    visible = min(stop, seen_before + first + r // heads)
                    score[u, r] = x if base + u * AT_ONCE + part < visible else LOWEST
            for r in range(ROWS):
                new = highest[r]
                for u in range(UNROLL):
                    new = max(new, score[u, r])
                shrink = exp2(highest[r] - new)
                highest[r] = new
                total[r] *= shrink
                for i in range(COLUMNS):
                    acc[r, i] *= shrink
                for u in range(UNROLL):
                    weight = exp2(score[u, r] - new)
                    total[r] += weight
                    score[u, r] = weight * v_scale[u] if QUANTIZED else weight
            for u in range(UNROLL):
                for w in range(WORDS):
                    for i in range(PER_WORD):
                        x = number(v[u, w], i)
                        for r in range(ROWS):
                            acc[r, w * PER_WORD + i] += score[u, r] * x

        # join what the warps, and the groups of lanes in them, have found
        found = cuda.shared.array(FOUND, float32)
        for r in range(ROWS):
            at = (warp * AT_ONCE + part) * ROWS + r
            if column == 0:
                found[HIGHEST + at] = highest[r]
                found[TOTALS + at] = total[r]
            if is_inside:
                for i in range(COLUMNS):
                    found[at * head_size + column + i] = acc[r, i]
        cuda.syncthreads()
        join(found, out, workspace, result_at, q_start, num_queries, first, kv_head, head_tile, num_kv_heads)

    merge = merger(heads, group, head_size, NUM_THREADS, q_kind.stored)
    return ragged_kernel(device_function(attend_tile), merge, tokens)


def packed_dot(kind: Kind, words: int) -> Any:
    """(q, r, k, u): the sum of q[r, w] * k[u, w] over all words, of two numbers each; rounded after each of them."""
    fma, number = fma_halves if kind == FLOAT16 else fma_bfloats, kind.number

    def dot(q, r, k, u):
        sums = uint32(0)
        for w in range(words):
            sums = fma(q[r, w], k[u, w], sums)
        return number(sums, 0) + number(sums, 1)

    return device_function(dot)


def loader(words: int) -> Any:
    """(array, u, memory, i): array[u, :] = words i, i + 1, ... of memory, with one load."""
    if words == 4:

        def load(array, u, memory, i):
            array[u, 0], array[u, 1], array[u, 2], array[u, 3] = load_16_bytes(memory, i)
    elif words == 2:

        def load(array, u, memory, i):
            array[u, 0], array[u, 1] = load_8_bytes(memory, i)
    else:

        def load(array, u, memory, i):
            array[u, 0] = memory[i]

    return device_function(load)
