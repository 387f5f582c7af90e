"""Paged attention on tensor cores: 16 rows of q at once, against 16 tokens of K and V.

`mma.m16n8k16` multiplies a 16 x 16 matrix with a 16 x 8 one, each held in pieces by the 32 lanes of a warp: lane
4 g + c has, of the left one, rows g and g + 8, and of the right one, column g; and of both the inner indices 2 c,
2 c + 1, 2 c + 8 and 2 c + 9. The 16 rows of q are the query heads that share a KV head (of a decode; unused rows cost
nothing, because the time goes into reading K and V), or those of several tokens (of a prompt).

    q @ K   the inner index is the position in the head, and a sum may be taken in any order: so 16 bytes of a row of K
            are a lane's piece as they are, if q is cut in the same way
    P @ V   lane 4 g + c has the scores of rows g and g + 8 with tokens 2 c, 2 c + 1, 2 c + 8 and 2 c + 9, which is what
            it must bring as its piece of P. V is cut by columns, which may be taken in any order too: two rows of V are
            interleaved by `prmt`

Memory is fast only for whole lines of 128 bytes. So a warp requests whole rows of K and V, two to four steps before it
wants them (`cp.async`), and they arrive in shared memory, from where each lane takes its pieces (docs/gpu.md: that is a
fifth faster than requesting the pieces themselves). K and V of one byte a number are widened to two in registers. The
rest is as in ordinary_cores.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from minipage.attention.cuda.cache import newest_writer
from minipage.attention.cuda.compat import cuda, device_function, size_in_kernel, types
from minipage.attention.cuda.kinds import BFLOAT16, FLOAT16, LOWEST, Kind, widener
from minipage.attention.cuda.merge import joiner, merger
from minipage.attention.cuda.ordinary_cores import ALL, WARP
from minipage.attention.cuda.ptx import (
    end_of_group,
    exp2,
    load_4_bytes,
    mma_bfloats,
    mma_halves,
    order_of_kernels,
    pack_bfloats,
    pack_halves,
    prmt,
    request_4_bytes,
    request_16_bytes,
    shared_8_bytes,
    shared_16_bytes,
    waiter,
)
from minipage.attention.cuda.tiles import LEAST_SHARE, ragged_kernel

float32, int32, uint32 = types.float32, types.int32, types.uint32

NUM_WARPS = 2
WIDE = 8  # warps of a block that has a multiprocessor to itself
STEP = 16  # tokens of K and V at once
TILE = 16  # rows of q of a warp
WARP_BYTES = 16 * 1024  # of K and V that are on their way to a warp
WIDE_BYTES = WIDE * (WARP_BYTES + 4 * 4 * WARP)  # of shared memory, with scales


def has_tensor_kernel(q_kind: Kind, kv: Kind, head_size: int) -> bool:
    return head_size in (64, 128) and q_kind.num_bytes == 2 and (kv == q_kind or kv.is_quantized)


@cache
def tensor_kernel(
    q_kind: Kind, kv: Kind, head_size: int, block_size: int, heads_per_kv: int, heads: int, tokens: int,
    window: int | None = None, writes: bool = False, num_warps: int = NUM_WARPS,
) -> Any:  # fmt: skip
    """The kernel for these numbers and sizes.

    Args:
        heads_per_kv: query heads of a KV head.
        heads, tokens: a tile of q is `heads` of these heads for each of `tokens` tokens. With 1 token, all warps
            have the same rows and share the tokens of K and V; with more, each has 16 rows of its own.
        writes: K and V of the newest token come along; see launch_attention.
        num_warps: of a block.
    """
    NUM_THREADS = num_warps * WARP
    PREFILL = tokens > 1
    WINDOW = window or 0  # a decode starts behind it; of the queries of a prompt each has another one
    ROWS = heads * tokens
    PARTS = 1 if PREFILL else num_warps
    HALVES = 2 if PREFILL or heads > 8 else 1  # whether rows 8 to 15 are wanted
    HEAD_TILES = -(-heads_per_kv // heads)
    QUANTIZED = kv.is_quantized
    ROW_WORDS = head_size * kv.num_bytes // 4
    # A row of K is cut into chunks of 16 bytes for each of 4 lanes, which become K_WIDTH words of two numbers each.
    K_CHUNKS = ROW_WORDS // 16
    K_WORDS = head_size // 8
    K_WIDTH = K_WORDS // K_CHUNKS
    # A row of V is cut into chunks of up to 16 bytes for each of 8 lanes.
    V_LOAD = min(4, ROW_WORDS // 8)
    V_CHUNKS = ROW_WORDS // 8 // V_LOAD
    V_WIDTH = head_size // 16 // V_CHUNKS
    COLUMNS = 2 * V_WIDTH  # of V, and of the result, that lie together in a lane
    TILES = head_size // 8  # of 8 columns of the result
    # Shared memory, in words: stages of K, V and scales on their way to each warp, and in the end the results.
    PIECES = ROW_WORDS // 4  # of 16 bytes, in a row; a load of the warp brings whole rows: this many
    ROWS_AT_ONCE = WARP // PIECES
    V_START = STEP * ROW_WORDS
    SCALE_START = 2 * V_START
    STAGE = SCALE_START + (WARP if QUANTIZED else 0)
    STAGES = min(4, WARP_BYTES // (2 * STEP * head_size * kv.num_bytes))
    HIGHEST = PARTS * ROWS * head_size  # after the results
    TOTALS = HIGHEST + PARTS * ROWS
    BUFFER = max(num_warps * STAGES * STAGE, PARTS * ROWS * (head_size + 2))
    BUFFER_SIZE = size_in_kernel(BUFFER)
    STRIDE = STEP if PREFILL else STEP * num_warps
    # Weights are multiplied with the scales of V before they are rounded, and might get too small for float16.
    v_kind = BFLOAT16 if QUANTIZED else q_kind
    pack = pack_halves if v_kind == FLOAT16 else pack_bfloats
    k_multiply, v_multiply = multiplier(q_kind, HALVES), multiplier(v_kind, HALVES)
    k_widen, v_widen = widener(kv, q_kind), widener(kv, v_kind)
    k_take, v_take = taker(4, k_widen), taker(V_LOAD, v_widen)
    wait_for_oldest, wait_for_all = waiter(STAGES - 1), waiter(0)
    join = joiner(PARTS, heads, tokens, heads_per_kv, head_size, NUM_THREADS, q_kind.stored)
    write_newest = newest_writer(q_kind, kv, head_size)
    _, wait_for_last = order_of_kernels()

    @device_function
    def place(row, piece):
        """Where a piece of a row lies in a stage: not in order, so that the lanes that read together find theirs in
        different banks of the memory."""
        if PIECES == 4:
            return int32(row * ROW_WORDS + (piece ^ row // 2 % 4) * 4)
        return int32(row * ROW_WORDS + (piece ^ row // 2 % 4 * 2 ^ row % 2 * 4) * 4)

    @device_function
    def slot_of(base, stop, block_tables, table):
        """The slot of one of the tokens base to base + 15, another for each lane; past the end, of the last one."""
        token = min(base + cuda.threadIdx.x % STEP, stop - 1)
        return int32(load_4_bytes(block_tables, table + token // block_size) * block_size + token % block_size)

    @device_function
    def request(buffer, stage, slot, is_wanted, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads):
        """Have K and V of 16 slots, one of each lane, brought to a stage of the buffer, whole rows at a time."""
        if is_wanted:
            lane = cuda.threadIdx.x % WARP
            piece = lane % PIECES
            for i in range(STEP // ROWS_AT_ONCE):
                own = i * ROWS_AT_ONCE + lane // PIECES
                row = cuda.shfl_sync(ALL, slot, own) * num_kv_heads + kv_head
                to = stage + place(own, piece)
                request_16_bytes(buffer, to, k_cache, row * ROW_WORDS + piece * 4)
                request_16_bytes(buffer, to + V_START, v_cache, row * ROW_WORDS + piece * 4)
            if QUANTIZED:
                row = slot * num_kv_heads + kv_head
                if lane < STEP:
                    request_4_bytes(buffer, stage + SCALE_START + lane, k_scales, row)
                else:
                    request_4_bytes(buffer, stage + SCALE_START + lane, v_scales, row)
        end_of_group()

    def attend_tile(
        seq, first, start, stop, result_at, q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens,
        query_start_loc, out, workspace, scale, q_stride, max_blocks, num_kv_heads,
        new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
    ):  # fmt: skip
        # which rows of q, which tokens of K and V
        kv_head, head_tile = cuda.blockIdx.x // HEAD_TILES, cuda.blockIdx.x % HEAD_TILES
        thread = cuda.threadIdx.x
        lane, warp = thread % WARP, thread // WARP
        g, c = lane // 4, lane % 4
        context, q_start = context_lens[seq], query_start_loc[seq]
        num_queries = query_start_loc[seq + 1] - q_start
        seen_before = context - num_queries + 1  # query i sees seen_before + i tokens
        if PREFILL:
            first_row = warp * TILE
            start = int32(max(0, seen_before + first + first_row // heads - WINDOW) if WINDOW else 0)
            stop = seen_before + min(first + min((first_row + TILE - 1) // heads, tokens - 1), num_queries - 1)
        else:
            first_row = 0
            start = int32(start + warp * STEP)

        buffer = cuda.shared.array(BUFFER_SIZE, float32)
        table = seq * max_blocks
        own_stages = int32(warp * STAGES * STAGE)
        new_slot = int32(-1)
        if writes:  # steps that do not hold the newest token are requested before it is there
            new_slot = int32(slot_mapping[q_start])
            for i in range(STAGES):
                base = start + i * STRIDE
                if base + STEP < context:
                    slot = slot_of(base, stop, block_tables, table) if base < stop else int32(0)
                    request(
                        buffer, own_stages + i * STAGE, slot, base < stop,
                        k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads,
                    )  # fmt: skip
            wait_for_last()

        q_word = cuda.local.array((2, K_WORDS), uint32)  # of rows g and g + 8
        visible = cuda.local.array(2, int32)
        highest = cuda.local.array(2, float32)
        total = cuda.local.array(2, float32)
        acc = cuda.local.array((TILES, 4), float32)
        for half in range(2):
            row = first_row + g + 8 * half
            token, head = first + row // heads, head_tile * heads + row % heads
            is_row = row < ROWS and token < num_queries and head < heads_per_kv
            visible[half] = min(stop, seen_before + token) if PREFILL else stop
            highest[half], total[half] = LOWEST, float32(0)
            at = ((q_start + token) * q_stride + (kv_head * heads_per_kv + head) * head_size) // 2
            for w in range(K_WORDS):
                q_word[half, w] = uint32(0)
                if is_row:
                    q_word[half, w] = q[at + (w // K_WIDTH * 4 + c) * K_WIDTH + w % K_WIDTH]
        if writes and stop == context:
            write_newest(
                new_k, new_v, new_slot, k_numbers, v_numbers, k_scales, v_scales, k_stride, v_stride, q_start, kv_head,
                num_kv_heads,
            )  # fmt: skip
        for i in range(STAGES):
            base = start + i * STRIDE
            if not writes or base + STEP >= context:
                slot = slot_of(base, stop, block_tables, table) if base < stop else int32(0)
                request(
                    buffer, own_stages + i * STAGE, slot, base < stop,
                    k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads,
                )  # fmt: skip

        for j in range(TILES):
            for e in range(4):
                acc[j, e] = float32(0)

        k = cuda.local.array((2, K_WIDTH), uint32)
        v = cuda.local.array((4, V_WIDTH), uint32)
        score = cuda.local.array((2, 4), float32)  # tokens 0-7 and 8-15
        p = cuda.local.array((2, 2), uint32)
        p[1, 0], p[1, 1] = uint32(0), uint32(0)
        # Where this lane finds its pieces of rows: other rows and pieces are a fixed distance away from one of these.
        k_even, k_odd = place(g, c), place(g, c ^ 4)
        v_even = int32(place(2 * c, g * V_LOAD // 4) + g * V_LOAD % 4 + V_START)
        v_odd = int32(place(2 * c + 1, g * V_LOAD // 4) + g * V_LOAD % 4 + V_START)
        stage = own_stages
        for base in range(start, stop, STRIDE):
            ahead = base + STAGES * STRIDE
            slot = slot_of(ahead, stop, block_tables, table)  # has arrived by the time it is wanted
            wait_for_oldest()
            cuda.syncwarp()  # all lanes have waited for what they requested
            for n in range(2):
                for e in range(4):
                    score[n, e] = float32(0)
            for i in range(K_CHUNKS):
                for n in range(2):
                    k_take(k, n, buffer, stage + (k_odd if i % 2 else k_even) + 8 * n * ROW_WORDS + i // 2 * 32)
                for w in range(0, K_WIDTH, 2):
                    j = i * K_WIDTH + w
                    a = (q_word[0, j], q_word[1, j], q_word[0, j + 1], q_word[1, j + 1])
                    for n in range(2):
                        k_multiply(score, n, a, k[n, w], k[n, w + 1])
            for half in range(HALVES):
                new = highest[half]
                for n in range(2):
                    for e in range(2):
                        x = score[n, 2 * half + e] * scale
                        if QUANTIZED:
                            x *= buffer[stage + SCALE_START + 8 * n + 2 * c + e]
                        is_seen = base + 8 * n + 2 * c + e < visible[half]
                        if PREFILL and WINDOW:
                            is_seen = is_seen and base + 8 * n + 2 * c + e >= visible[half] - WINDOW
                        x = x if is_seen else LOWEST
                        score[n, 2 * half + e] = x
                        new = max(new, x)
                new = max(new, cuda.shfl_xor_sync(ALL, new, 1))
                new = max(new, cuda.shfl_xor_sync(ALL, new, 2))
                shrink = exp2(highest[half] - new)
                highest[half] = new
                total[half] *= shrink
                for j in range(TILES):
                    acc[j, 2 * half] *= shrink
                    acc[j, 2 * half + 1] *= shrink
                for n in range(2):
                    for e in range(2):
                        weight = exp2(score[n, 2 * half + e] - new)
                        total[half] += weight
                        if QUANTIZED:
                            weight *= buffer[stage + SCALE_START + STEP + 8 * n + 2 * c + e]
                        score[n, 2 * half + e] = weight
                    p[half, n] = pack(score[n, 2 * half], score[n, 2 * half + 1])
            a = (p[0, 0], p[1, 0], p[0, 1], p[1, 1])
            for i in range(V_CHUNKS):
                for r in range(4):
                    at = stage + (v_odd if r % 2 else v_even) + r // 2 * 8 * ROW_WORDS + i * 32
                    v_take(v, r, buffer, at)
                for w in range(V_WIDTH):
                    low, high = uint32(0x5410), uint32(0x7632)  # the lower halves of two words, and the upper ones
                    j = 2 * (i * V_WIDTH + w)
                    v_multiply(acc, j, a, prmt(v[0, w], v[1, w], low), prmt(v[2, w], v[3, w], low))
                    v_multiply(acc, j + 1, a, prmt(v[0, w], v[1, w], high), prmt(v[2, w], v[3, w], high))
            cuda.syncwarp()  # all lanes have read what is overwritten now
            request(
                buffer, stage, slot, ahead < stop, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads
            )  # fmt: skip
            stage = int32(stage + STAGE) if stage < own_stages + (STAGES - 1) * STAGE else own_stages

        wait_for_all()
        cuda.syncthreads()  # the buffer is free for the results
        part = 0 if PREFILL else warp
        for half in range(HALVES):
            total[half] += cuda.shfl_xor_sync(ALL, total[half], 1)
            total[half] += cuda.shfl_xor_sync(ALL, total[half], 2)
            row = first_row + g + 8 * half
            if row < ROWS:
                if c == 0:
                    buffer[HIGHEST + part * ROWS + row] = highest[half]
                    buffer[TOTALS + part * ROWS + row] = total[half]
                for j in range(TILES):
                    column = (j // COLUMNS * 8 + 2 * c) * COLUMNS + j % COLUMNS
                    at = (part * ROWS + row) * head_size + column
                    buffer[at], buffer[at + COLUMNS] = acc[j, 2 * half], acc[j, 2 * half + 1]
        cuda.syncthreads()
        join(buffer, out, workspace, result_at, q_start, num_queries, first, kv_head, head_tile, num_kv_heads)

    merge = merger(heads, heads_per_kv, head_size, NUM_THREADS, q_kind.stored)
    attend = device_function(attend_tile)
    return ragged_kernel(attend, merge, tokens, window, writes, LEAST_SHARE * num_warps, 4 * BUFFER)


def taker(words: int, widen: Any) -> Any:
    """(array, row, shared, i): `words` words from shared memory, widened, to array[row, :]."""

    def take_2(array, row, shared, i):
        a, b = shared_8_bytes(shared, i)
        widen(a, array, row, 0)
        widen(b, array, row, 1)

    def take_4(array, row, shared, i):
        a, b, c, d = shared_16_bytes(shared, i)
        widen(a, array, row, 0)
        widen(b, array, row, 1)
        widen(c, array, row, 2)
        widen(d, array, row, 3)

    return device_function(take_4 if words == 4 else take_2)


def multiplier(kind: Kind, halves: int) -> Any:
    """(acc, j, a, b0, b1): acc[j, :] += a @ b, 16 x 16 with 16 x 8 numbers of this kind, in float32.

    halves: 1 if rows 8 to 15 are of no interest; then they take no registers in between.
    """
    mma = mma_halves if kind == FLOAT16 else mma_bfloats

    def multiply(acc, j, a, b0, b1):
        if halves == 1:
            acc[j, 0], acc[j, 1], _, _ = mma(a, (b0, b1), (acc[j, 0], acc[j, 1], float32(0), float32(0)))
        else:
            c = (acc[j, 0], acc[j, 1], acc[j, 2], acc[j, 3])
            acc[j, 0], acc[j, 1], acc[j, 2], acc[j, 3] = mma(a, (b0, b1), c)

    return device_function(multiply)
