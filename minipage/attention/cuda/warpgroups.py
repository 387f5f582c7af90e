"""Paged attention of prompts by warpgroups, on GPUs whose tensor cores read shared memory themselves (wgmma.py).

A block has 64 rows of q for each warpgroup: query heads that share a KV head, of several tokens. It goes through K and
V in steps of 64 tokens (of short rows, 128), which all of its threads have brought to shared memory; while a step is
computed, the next one is on its way. K and V of one byte a number are widened in between (widening.py).

    request K, V  ─▶  shared memory  ─▶  scores = Q @ K^T  ─▶  weights, in the same registers  ─▶  acc += weights @ V

Lane 4 g + c has scores of two rows, g and g + 8 of its warp's 16: score[4 j + 2 n + e] is of row g + 8 n and of token
8 j + 2 c + e of the step, and acc[4 j + 2 n + e] of the same row and position 8 j + 2 c + e in the head. The four lanes
of a row find its highest score together; the rest is the online softmax of ordinary_cores.py. Scores are bare products:
scale is above 0, so the highest stays it, and one instruction scales a score and subtracts the highest. Weights are
powers of two: scale comes times log2(e). While one block makes weights, another can have the tensor cores: two of them
share a multiprocessor.

Thread indices become uint32 before a division: numba's division rounds down, which takes a dozen more instructions for
numbers that may be negative.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from minipage.attention.cuda.compat import cuda, device_function, has_warpgroups, size_in_kernel, types
from minipage.attention.cuda.kinds import BFLOAT16, FLOAT16, LOWEST, Kind
from minipage.attention.cuda.ptx import (
    end_of_group,
    exp2,
    load_4_bytes,
    pack_bfloats,
    pack_halves,
    request_4_bytes,
    request_16_bytes,
    store_4_bytes,
    waiter,
)
from minipage.attention.cuda.tensor_cores import NOTHING_YET
from minipage.attention.cuda.tiles import ALL, WARP, ragged_kernel
from minipage.attention.cuda.wgmma import (
    ALIGNMENT,
    PANEL,
    ROWS,
    score_multiplier,
    show_tensor_cores,
    swizzled,
    value_multiplier,
)
from minipage.attention.cuda.widening import widener

float32, int32, int64, uint32 = types.float32, types.int32, types.int64, types.uint32

GROUPS = 2  # warpgroups of a block, which share K and V; even: see NEXT
BLOCK_ROWS = GROUPS * ROWS  # of q
STAGES = 2  # one step is computed, and one on its way
NUM_WARPS = 4 * GROUPS
NUM_THREADS = NUM_WARPS * WARP
MOST_REGISTERS = 65_536 // (2 * NUM_THREADS)  # of a thread, so that two blocks fit


def has_warpgroup_kernel(q_kind: Kind, kv: Kind, head_size: int) -> bool:
    can_be_like_q = kv == q_kind or (kv.is_quantized and q_kind == BFLOAT16)  # float16 has not the range of all scales
    return has_warpgroups() and head_size in (64, 128) and q_kind.num_bytes == 2 and can_be_like_q


@cache
def warpgroup_kernel(
    q_kind: Kind, kv: Kind, head_size: int, block_size: int, heads_per_kv: int, heads: int, tokens: int,
    window: int | None = None,
) -> Any:  # fmt: skip
    """The kernel for prompts of these numbers and sizes; arguments as of `tensor_kernel`."""
    WINDOW = window or 0
    HEAD_TILES = -(-heads_per_kv // heads)
    WIDENS = kv.is_quantized
    STEP = 64 * 128 // head_size  # tokens of K and V at once: two panels (wgmma.py) of each
    TOKENS_OF_WARP = STEP // NUM_WARPS  # that it requests
    ROW_WORDS = head_size * kv.num_bytes // 4  # of K or V, as it is requested
    PIECES = ROW_WORDS // 4  # of 16 bytes, in a row
    ROWS_AT_ONCE = WARP // PIECES  # that a warp requests
    Q_WORDS = head_size // 2  # of a row of q, and of K or V as it is multiplied
    Q_TILE, TILE = ROWS * Q_WORDS, STEP * Q_WORDS
    # Shared memory, in words. What is in brackets is there if K and V are widened; otherwise they are tiles already.
    #     q of each warpgroup | [K, V as tiles] | K, V, [scales of K, of V] on their way, a stage | another stage
    WIDENED = GROUPS * Q_TILE
    FIRST_STAGE = WIDENED + (2 * TILE if WIDENS else 0)
    V_START = STEP * ROW_WORDS  # in a stage, like SCALES
    SCALES = 2 * V_START
    STAGE = SCALES + (2 * STEP if WIDENS else 0)
    # From a token of a warp to its next: a multiple of 8 rows on, where pieces are in the same order.
    NEXT = NUM_WARPS * (ROW_WORDS if WIDENS else PANEL // ROWS)
    LAST_STAGE = FIRST_STAGE + (STAGES - 1) * STAGE
    BUFFER = FIRST_STAGE + STAGES * STAGE
    BUFFER_SIZE = size_in_kernel(BUFFER)
    NUM_SCORES, NUM_SUMS = STEP // 2, head_size // 2  # of a lane
    pack = pack_halves if q_kind == FLOAT16 else pack_bfloats
    score_tokens, add_values = score_multiplier(q_kind, head_size, STEP), value_multiplier(q_kind, head_size, STEP)
    wait_for_oldest = waiter(STAGES - 1)
    widen: Any = widener(kv) if WIDENS else None

    @device_function
    def slot_of(base, stop, block_tables, table):
        """Lane i has the slot of the i-th token that its warp requests for a step; past the end, of the last."""
        thread = uint32(cuda.threadIdx.x)
        token = uint32(min(int32(base + thread % TOKENS_OF_WARP * NUM_WARPS + thread // WARP), int32(stop - 1)))
        block = load_4_bytes(block_tables, int32(table + int32(token // block_size)))
        return int32(block * block_size + int32(token % block_size))

    @device_function
    def request(buffer, stage, slot, is_wanted, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads):
        """Have K and V of this warp's tokens of a step, in the slots of its lanes, brought to a stage of the buffer. An
        empty request counts, too: whoever waits counts them."""
        if is_wanted:
            thread = uint32(cuda.threadIdx.x)
            nth, piece, warp = thread % WARP // PIECES, thread % PIECES, thread // WARP
            row = int32(slot * num_kv_heads + kv_head)
            token = uint32(nth * NUM_WARPS + warp)  # the first that this lane requests a piece of
            to = stage + (token * ROW_WORDS + piece * 4 if WIDENS else swizzled(token, piece * 4))
            row_pieces = int32(row * PIECES)  # of 32 bits: 2 ** 32 would be 128 GiB of K and V
            for i in range(0, TOKENS_OF_WARP, ROWS_AT_ONCE):
                at = int64(uint32(uint32(cuda.shfl_sync(ALL, row_pieces, i + nth)) + piece)) * 4
                request_16_bytes(buffer, to + i * NEXT, k_cache, at)
                request_16_bytes(buffer, to + i * NEXT + V_START, v_cache, at)
            if WIDENS and thread % WARP < TOKENS_OF_WARP:
                to = stage + SCALES + thread % WARP * NUM_WARPS + warp
                request_4_bytes(buffer, to, k_scales, row)
                request_4_bytes(buffer, to + STEP, v_scales, row)
        end_of_group()

    @device_function
    def widen_step(buffer, stage):
        """What this thread requested of a step, with scales that its warp requested, becomes a part of the tiles."""
        thread = uint32(cuda.threadIdx.x)
        nth, piece, warp = thread % WARP // PIECES, thread % PIECES, thread // WARP
        for i in range(0, TOKENS_OF_WARP, ROWS_AT_ONCE):
            row = uint32((i + nth) * NUM_WARPS + warp)
            at, scale_at = stage + row * ROW_WORDS + piece * 4, stage + SCALES + row
            widen(buffer, at, buffer[scale_at], WIDENED, row, piece * 8)
            widen(buffer, at + V_START, buffer[scale_at + STEP], WIDENED + TILE, row, piece * 8)

    @device_function
    def request_queries(buffer, q, q_stride, q_start, num_queries, first, kv_head, first_head):
        """Have the rows of q of this warp brought to its warpgroup's tile, with the first step of K and V; instead of a
        row that there is not, one that is computed and not written. q may be part of wider rows: only words are sure to
        be aligned."""
        thread = uint32(cuda.threadIdx.x)
        lane, first_row = thread % WARP, thread // WARP * 16
        row = uint32(first_row + lane % 16)
        token = int32(q_start + min(int32(first + row // heads), int32(num_queries - 1)))
        head = int32(kv_head * heads_per_kv + min(int32(first_head + row % heads), int32(heads_per_kv - 1)))
        at = (token * q_stride + head * head_size) // 2
        to = first_row // ROWS * Q_TILE
        for i in range(16):
            row_at = cuda.shfl_sync(ALL, at, i)
            for j in range(0, Q_WORDS, WARP):
                word = uint32(lane + j)
                request_4_bytes(buffer, to + swizzled(first_row % ROWS + i, word), q, row_at + word)

    @device_function
    def hide(score, base, visible, c):
        """Scores of tokens that a row does not see become the lowest."""
        for n in range(2):
            seen = int32(visible[n] - base - 2 * c)  # from this lane's first token of the step on
            for i in range(2 * n, NUM_SCORES, 4):
                for e in range(2):
                    token = i // 4 * 8 + e
                    is_seen = token < seen
                    if WINDOW:
                        is_seen = is_seen and token >= int32(seen - WINDOW)
                    score[i + e] = score[i + e] if is_seen else LOWEST

    @device_function
    def weigh(n, score, scale, highest, total, acc):
        """Scores of row g + 8 n become weights, and total and sums relative to the new highest.

        The highest one's weight is not quite 1: `scaled` is rounded, and the product of that score is not.
        """
        new = highest[n]
        for i in range(2 * n, NUM_SCORES, 4):
            new = max(new, max(score[i], score[i + 1]))
        for bit in (1, 2):
            new = max(new, cuda.shfl_xor_sync(ALL, new, bit))
        if cuda.any_sync(ALL, new > highest[n]):  # in most steps no row of the warp has a new one
            shrink = exp2((highest[n] - new) * scale)
            highest[n] = new
            total[n] *= shrink
            for i in range(2 * n, NUM_SUMS, 4):
                acc[i] *= shrink
                acc[i + 1] *= shrink
        scaled = new * scale
        for i in range(2 * n, NUM_SCORES, 4):
            score[i], score[i + 1] = exp2(score[i] * scale - scaled), exp2(score[i + 1] * scale - scaled)
            total[n] += score[i] + score[i + 1]

    @device_function
    def write(n, out, out_row, total, acc):
        """Row g + 8 n of the answer; each of its four lanes writes two of eight numbers."""
        for bit in (1, 2):
            total[n] += cuda.shfl_xor_sync(ALL, total[n], bit)
        if out_row >= 0:
            at = int64(out_row) * head_size + 2 * (uint32(cuda.threadIdx.x) % 4)
            share = float32(1) / total[n]
            for i in range(2 * n, NUM_SUMS, 4):
                store_4_bytes(out, at + i // 4 * 8, pack(acc[i] * share, acc[i + 1] * share))

    def attend_tile(
        seq, first, start, stop, result_at, q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens,
        query_start_loc, out, workspace, scale, q_stride, max_blocks, num_kv_heads,
        new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
    ):  # fmt: skip
        """`attend`, as tiles.ragged_kernel has it."""
        num_kv_heads, table = int32(num_kv_heads), int32(seq * int32(max_blocks))
        thread, head_tile = uint32(cuda.threadIdx.x), uint32(cuda.blockIdx.x)
        kv_head, first_head = int32(head_tile // HEAD_TILES), int32(head_tile % HEAD_TILES * heads)
        first_row = thread // WARP * 16 + thread % WARP // 4  # of the lane's two; the other is 8 further
        c = int32(thread % 4)
        own_q = cuda.shfl_sync(ALL, int32(thread // (4 * WARP) * Q_TILE), 0)  # so the compiler knows: one for the warp
        context, q_start = int32(context_lens[seq]), int32(query_start_loc[seq])
        num_queries = int32(query_start_loc[seq + 1] - q_start)
        seen_before = int32(context - num_queries + 1)  # query i sees seen_before + i tokens
        sees_nothing = int32(q_start - seen_before)  # the query that sees n tokens is row sees_nothing + n of q
        seen_by_first = int32(seen_before + first)
        start = int32(max(0, seen_by_first - WINDOW) if WINDOW else 0)
        stop = int32(seen_before + min(first + tokens, num_queries) - 1)

        buffer = cuda.shared.array(BUFFER_SIZE, float32, ALIGNMENT)
        stage = int32(FIRST_STAGE)
        request_queries(buffer, q, q_stride, q_start, num_queries, first, kv_head, first_head)
        for i in range(STAGES):
            base = int32(start + i * STEP)
            slot = slot_of(base, stop, block_tables, table)
            request(
                buffer, stage + i * STAGE, slot, base < stop, k_cache, v_cache, k_scales, v_scales, kv_head,
                num_kv_heads,
            )  # fmt: skip

        score = cuda.local.array(NUM_SCORES, float32)
        acc = cuda.local.array(NUM_SUMS, float32)
        visible = cuda.local.array(2, int32)  # this and the next two: of row g, and of row g + 8
        highest, total = cuda.local.array(2, float32), cuda.local.array(2, float32)
        for n in range(2):
            row = first_row + 8 * n
            visible[n] = int32(seen_by_first + row // heads)  # more than there are, if it is a row of no query
            highest[n], total[n] = NOTHING_YET, float32(0)
        for i in range(NUM_SUMS):
            acc[i] = float32(0)
        for i in range(NUM_SCORES):
            score[i] = float32(0)  # the product overwrites it, but takes it, too

        base = start
        while base < stop:
            ahead = int32(base + STAGES * STEP)
            slot = slot_of(ahead, stop, block_tables, table)  # for `request` below: to look it up takes a while
            wait_for_oldest()  # what this thread requested has come
            tiles = stage
            if WIDENS:
                cuda.syncthreads()  # all have read the tiles, and scales that other lanes requested have come
                widen_step(buffer, stage)
                tiles = int32(WIDENED)
            show_tensor_cores()
            cuda.syncthreads()  # the tiles are complete
            if WIDENS:
                request(
                    buffer, stage, slot, ahead < stop, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads
                )  # fmt: skip
            score_tokens(score, buffer, own_q, buffer, tiles)
            if WINDOW or base + STEP > seen_by_first:
                hide(score, base, visible, c)
            for n in range(2):
                weigh(n, score, scale, highest, total, acc)
            add_values(acc, score, buffer, tiles + TILE)
            if not WIDENS:
                cuda.syncthreads()  # all have read the stage, which is filled again now
                request(
                    buffer, stage, slot, ahead < stop, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads
                )  # fmt: skip
            stage = int32(stage + STAGE) if stage < LAST_STAGE else int32(FIRST_STAGE)
            base = int32(base + STEP)

        for n in range(2):
            row = first_row + 8 * n
            head = int32(first_head + row % heads)
            is_row = visible[n] <= stop and head < heads_per_kv
            out_row = ((sees_nothing + visible[n]) * num_kv_heads + kv_head) * heads_per_kv + head
            write(n, out, out_row if is_row else -1, total, acc)

    attend = device_function(attend_tile)
    return ragged_kernel(attend, None, tokens, window, shared_bytes=4 * BUFFER, max_registers=MOST_REGISTERS)
