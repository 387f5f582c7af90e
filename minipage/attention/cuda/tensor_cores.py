"""Paged attention on tensor cores: 16 tokens of K and V at once, against up to 16 rows of q.

`mma.m16n8k16` multiplies a left matrix, 16 x 16, with a right one, 16 x 8. A warp holds both in pieces, and the result.
Lane 4 g + c has

    left    rows g and g + 8    inner indices 2 c, 2 c + 1, 2 c + 8 and 2 c + 9
    right   column g            the same inner indices
    result  rows g and g + 8    columns 2 c and 2 c + 1

The left one is of 16 tokens of K or V. Columns of the right one are rows of q: query heads that share a KV head (of a
decode), or also those of several tokens (of a prompt). For 9 to 16 rows there are two of 8 columns, the halves.

    K @ q   [tokens, rows of q]: the inner index is the position in the head, and a sum may be taken in any order. So
            16 bytes of a row of K are a lane's piece as they are, if q is cut in the same way
    V @ P   [positions in the head, rows of q], P the weights: the inner index is the token. Of rows of V, too, a lane
            takes up to 16 bytes as they are, woven in pairs by `prmt`, and its results are of these positions. Its
            scores, of tokens g and g + 8, become its piece of P by `transposed`

K and V of one byte a number become float16 in registers, exactly, times a power of two (their unit). So do q and P,
which are made to fit its range; what is too small for it hardly counts beside the largest:

    q       divided by a power of two for each row, by which its largest number is from 1 to 2
    P       weight * scale of V is at most 1, because weights are relative to the highest score + log2(scale of V)

Memory is fast only for whole lines of 128 bytes. So a warp requests whole rows of K and V, two to four steps before it
wants them (`cp.async`), and they arrive in shared memory, from where each lane takes its pieces (docs/gpu.md: that is a
fifth faster than requesting the pieces themselves). The warps of a prompt's block go through the same rows: one of
them requests each. The rest is as in ordinary_cores.py.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from minipage.attention.cuda.cache import newest_writer
from minipage.attention.cuda.compat import cuda, device_function, size_in_kernel, types
from minipage.attention.cuda.fragments import loader, maker_of_halves, multiplier, pieces
from minipage.attention.cuda.kinds import FLOAT16, LOWEST, Kind
from minipage.attention.cuda.merge import joiner, merger
from minipage.attention.cuda.ordinary_cores import ALL, WARP
from minipage.attention.cuda.ptx import (
    end_of_group,
    exp2,
    load_4_bytes,
    log2,
    order_of_kernels,
    pack_bfloats,
    pack_halves,
    request_4_bytes,
    request_16_bytes,
    transposed,
    waiter,
)
from minipage.attention.cuda.tiles import barrier, ragged_kernel

float32, int32, int64, uint32 = types.float32, types.int32, types.int64, types.uint32

NUM_WARPS = 2
PREFILL_WARPS = 4  # of a block of a prompt; with more, of short rows some would have none to request
WIDE = 8  # warps of a block that has a multiprocessor to itself; there may also be two of 4
TILE = 16  # tokens that are multiplied at once; and rows of q of a warp
WARP_BYTES = 16 * 1024  # at most, of K and V that are on their way to a warp
# The highest score before a query has seen any: far above LOWEST, so that a step of which it sees nothing adds nothing.
NOTHING_YET = LOWEST / np.float32(2)
LEAST_SCALE = np.float32(2**-60)  # of V, for weights: they are at most one over it, or might be infinite
WIDE_BYTES = WIDE * (WARP_BYTES + 4 * 2 * 4 * WARP)  # of shared memory, with scales


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
            have the same rows, and each has other tokens of K and V; with more, each has 16 rows of its own, and they
            go through K and V together.
        writes: K and V of the newest token come along; see launch_attention.
        num_warps: of a block of a decode.
    """
    PREFILL = tokens > 1
    WARPS = PREFILL_WARPS if PREFILL else num_warps
    SHARERS = WARPS if PREFILL else 1  # warps that read the same steps of K and V
    WINDOW = window or 0  # a decode starts at its first token; of the queries of a prompt each has another one
    ROWS = heads * tokens
    EACH = min(2, ROWS)  # rows of q whose scores a lane looks at, of each half
    PARTS = 1 if PREFILL else WARPS  # of a context, which the warps of a block have
    HALVES = 2 if PREFILL or heads > 8 else 1  # of 8 rows of q
    HEAD_TILES = -(-heads_per_kv // heads)
    QUANTIZED = kv.is_quantized
    ROW_WORDS = head_size * kv.num_bytes // 4
    STEP = 2 * TILE if ROW_WORDS <= WARP else TILE  # tokens of K and V at once
    GROUPS = STEP // TILE  # of 16 tokens
    OWN = 2 * GROUPS  # tokens whose scores a lane has
    # A row of K is cut into chunks of 16 bytes for each of 4 lanes, which become K_WIDTH words of two numbers each.
    PER_WORD = 2 // kv.num_bytes  # words of two numbers that a word of K and V becomes
    K_CHUNKS, K_WORDS = ROW_WORDS // 16, head_size // 8
    K_WIDTH = 4 * PER_WORD
    # A row of V is cut into chunks of up to 16 bytes for each of 8 lanes, which become V_WIDTH words.
    V_LOAD = min(4, ROW_WORDS // 8)
    V_CHUNKS = ROW_WORDS // 8 // V_LOAD
    V_WIDTH = V_LOAD * PER_WORD
    TILES = head_size // 16  # of 16 positions in the head
    ALL_TILES, ALL_GROUPS = HALVES * TILES, GROUPS * HALVES  # results of V @ P, of K @ q
    # Shared memory, in words: stages of K, V and scales on their way, for each warp or, in a prompt, for all together;
    # and in the end the results.
    PIECES = ROW_WORDS // 4  # of 16 bytes, in a row; a load of the warp brings whole rows: this many
    ROWS_AT_ONCE = WARP // PIECES
    V_START = STEP * ROW_WORDS
    SCALE_START = 2 * V_START
    STAGE = SCALE_START + (2 * STEP if QUANTIZED else 0)
    STAGES = min(4, SHARERS * WARP_BYTES // (2 * STEP * head_size * kv.num_bytes))
    HIGHEST = PARTS * ROWS * head_size  # after the results
    TOTALS = HIGHEST + PARTS * ROWS
    BUFFER = max(WARPS // SHARERS * STAGES * STAGE, PARTS * ROWS * (head_size + 2))
    BUFFER_SIZE = size_in_kernel(BUFFER)
    STRIDE = STEP if PREFILL else STEP * WARPS  # tokens from a step of a warp to its next
    kind = FLOAT16 if QUANTIZED else q_kind  # of what is multiplied
    pack = pack_halves if kind == FLOAT16 else pack_bfloats
    load_k, load_v, multiply = loader(4), loader(V_LOAD), multiplier(kind)
    as_halves = maker_of_halves(q_kind, K_WORDS)
    k_piece, v_piece, unit = pieces(kv)
    PER_UNIT = np.float32(1 / unit)
    wait_for_oldest, wait_for_all, meet = waiter(STAGES - 1), waiter(0), barrier(PREFILL)
    join = joiner(PARTS, heads, tokens, heads_per_kv, head_size, WARPS * WARP, q_kind.stored)
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
        """The slot of one of the tokens of a step, another for each lane; past the end, of the last one."""
        token = uint32(min(base + cuda.threadIdx.x % STEP, stop - 1))
        block = load_4_bytes(block_tables, int32(table + int32(token // block_size)))
        return int32(block * block_size + int32(token % block_size))

    @device_function
    def request(buffer, stage, slot, is_wanted, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads):
        """Have K and V of a step's slots, one of each lane, brought to a stage of the buffer, whole rows at a time.

        Each of the warps that share a step has a part of its rows brought.
        """
        if is_wanted:
            lane, sharer = int32(cuda.threadIdx.x % WARP), int32(cuda.threadIdx.x // WARP % SHARERS)
            piece = lane % PIECES
            row = int32(slot * num_kv_heads + kv_head)  # 2 ** 31 rows would be 256 GiB of K and V
            for i in range(STEP // ROWS_AT_ONCE // SHARERS):
                own = int32((i * SHARERS + sharer) * ROWS_AT_ONCE + lane // PIECES)
                at = int64(cuda.shfl_sync(ALL, row, own)) * ROW_WORDS + piece * 4
                to = stage + place(own, piece)
                request_16_bytes(buffer, to, k_cache, at)
                request_16_bytes(buffer, to + V_START, v_cache, at)
            if QUANTIZED and sharer == 0:  # then a step has a token for each lane
                request_4_bytes(buffer, stage + SCALE_START + lane, k_scales, row)
                request_4_bytes(buffer, stage + SCALE_START + STEP + lane, v_scales, row)
        end_of_group()  # an empty one, too: whoever waits counts groups

    @device_function
    def request_first(
        holding_newest, buffer, own_stages, start, stop, context, block_tables, table, k_cache, v_cache, k_scales,
        v_scales, kv_head, num_kv_heads,
    ):  # fmt: skip
        """Have a warp's first steps brought; if `writes`, those that hold the newest token, or those that do not."""
        for i in range(STAGES):
            base = start + i * STRIDE
            if not writes or (base + STEP >= context) == holding_newest:
                slot = slot_of(base, stop, block_tables, table) if base < stop else int32(0)
                request(
                    buffer, own_stages + i * STAGE, slot, base < stop,
                    k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads,
                )  # fmt: skip

    @device_function
    def take_row(q_word, half, q, at, is_row, c):
        """A lane's quarter of a row of q, which begins at word `at`, cut as rows of K are; zeros if there is no row."""
        for w in range(K_WORDS):
            q_word[half, w] = uint32(0)
            if is_row:
                q_word[half, w] = q[at + (w // K_WIDTH * 4 + c) * K_WIDTH + w % K_WIDTH]

    @device_function
    def score_tokens(score, buffer, stage, q_word, own):
        """score = K @ q, [tokens of a step, rows of q]."""
        k = cuda.local.array((2, 4), uint32)  # of tokens g and g + 8
        for m in range(GROUPS):
            for half in range(HALVES):
                for e in range(4):
                    score[m * HALVES + half, e] = float32(0)
            for i in range(K_CHUNKS):
                for n in range(2):
                    row = m * TILE + 8 * n
                    load_k(k, n, buffer, stage + (own[1] if i % 2 else own[0]) + row * ROW_WORDS + i // 2 * 32)
                for w in range(0, K_WIDTH, 2):
                    word = i * K_WIDTH + w
                    a = (k_piece(k, 0, w), k_piece(k, 1, w), k_piece(k, 0, w + 1), k_piece(k, 1, w + 1))
                    for half in range(HALVES):
                        multiply(score, m * HALVES + half, a, q_word[half, word], q_word[half, word + 1])

    @device_function
    def weigh(half, e, own_token, visible, score, q_scale, k_scale, v_scale, log_scale, highest, total, acc):
        """Scores of a row of q become weights times scales of V, and total and sums relative to the new highest."""
        new = highest[half, e]  # of score + log_scale: no weight times its scale of V is above 1
        for n in range(OWN):
            j, f = n // 2 * HALVES + half, n % 2 * 2 + e
            token = int32(own_token + 8 * n)
            is_seen = token < visible[half, e]
            if PREFILL and WINDOW:
                is_seen = is_seen and token >= visible[half, e] - WINDOW
            x = score[j, f] * q_scale[half, e] * k_scale[n]
            score[j, f] = x if is_seen else LOWEST
            new = max(new, score[j, f] + log_scale[n])
        for bit in (4, 8, 16):
            new = max(new, cuda.shfl_xor_sync(ALL, new, bit))
        if not PREFILL or cuda.any_sync(ALL, new > highest[half, e]):  # for most steps, of no row of the warp
            shrink = exp2(highest[half, e] - new)
            highest[half, e] = new
            total[half, e] *= shrink
            for t in range(half * TILES, (half + 1) * TILES):
                acc[t, e], acc[t, 2 + e] = acc[t, e] * shrink, acc[t, 2 + e] * shrink
        for n in range(OWN):
            j, f = n // 2 * HALVES + half, n % 2 * 2 + e
            weight = exp2(score[j, f] - new)
            total[half, e] += weight
            score[j, f] = weight * v_scale[n]

    @device_function
    def add_values(acc, buffer, stage, p, own):
        """acc += V @ P, [positions in the head, rows of q]."""
        v = cuda.local.array((4, V_LOAD), uint32)  # of tokens 2 c, 2 c + 1, 2 c + 8 and 2 c + 9
        for m in range(GROUPS):
            for i in range(V_CHUNKS):
                for r in range(4):
                    row = m * TILE + r // 2 * 8
                    load_v(v, r, buffer, stage + (own[1] if r % 2 else own[0]) + row * ROW_WORDS + i * 32)
                for w in range(V_WIDTH):
                    a = (v_piece(v, 0, w, 0), v_piece(v, 0, w, 1), v_piece(v, 2, w, 0), v_piece(v, 2, w, 1))
                    for half in range(HALVES):
                        t = half * TILES + i * V_WIDTH + w
                        multiply(acc, t, a, p[m * HALVES + half, 0], p[m * HALVES + half, 1])

    @device_function
    def put_results(buffer, part, first_row, g, c, highest, total, acc):
        """What a warp has come to, for `join`: of its part of the context, of each row of q."""
        for half in range(HALVES):
            for e in range(2):
                for bit in (4, 8, 16):
                    total[half, e] += cuda.shfl_xor_sync(ALL, total[half, e], bit)
                row = first_row + 8 * half + 2 * c + e
                if row < ROWS:
                    at = part * ROWS + row
                    if g == 0:
                        buffer[HIGHEST + at], buffer[TOTALS + at] = highest[half, e], total[half, e]
                    for t in range(TILES):  # the two positions in the head that were rows g and g + 8
                        column = at * head_size + ((t // V_WIDTH * 8 + g) * V_WIDTH + t % V_WIDTH) * 2
                        low, high = acc[half * TILES + t, e], acc[half * TILES + t, 2 + e]
                        buffer[column], buffer[column + 1] = low * PER_UNIT, high * PER_UNIT

    def attend_tile(
        seq, first, start, stop, result_at, q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens,
        query_start_loc, out, workspace, scale, q_stride, max_blocks, num_kv_heads,
        new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
    ):  # fmt: skip
        """`attend`, as tiles.ragged_kernel has it."""
        # which rows of q, which tokens of K and V
        num_kv_heads, max_blocks = int32(num_kv_heads), int32(max_blocks)
        kv_head, head_tile = int32(cuda.blockIdx.x // HEAD_TILES), int32(cuda.blockIdx.x % HEAD_TILES)
        thread = int32(cuda.threadIdx.x)
        lane, warp = thread % WARP, thread // WARP
        g, c = lane // 4, lane % 4
        context, q_start = int32(context_lens[seq]), int32(query_start_loc[seq])
        num_queries = int32(query_start_loc[seq + 1] - q_start)
        seen_before = int32(context - num_queries + 1)  # query i sees seen_before + i tokens
        first_row = int32(warp * TILE if PREFILL else 0)
        if PREFILL:
            start = int32(max(0, seen_before + first - WINDOW) if WINDOW else 0)
            stop = int32(seen_before + min(first + tokens, num_queries) - 1)
        else:
            start = int32(start + warp * STEP)

        buffer = cuda.shared.array(BUFFER_SIZE, float32)
        table = int32(seq * max_blocks)  # 2 ** 31 entries would be 8 GiB of block tables
        own_stages = int32(0 if PREFILL else warp * STAGES * STAGE)
        new_slot = int32(-1)
        if writes:  # steps that do not hold the newest token are requested before it is there
            new_slot = int32(slot_mapping[q_start])
            request_first(
                False, buffer, own_stages, start, stop, context, block_tables, table, k_cache, v_cache, k_scales,
                v_scales, kv_head, num_kv_heads,
            )  # fmt: skip
            wait_for_last()

        q_word = cuda.local.array((HALVES, K_WORDS), uint32)  # of row g of each half
        q_scale = cuda.local.array((HALVES, 2), float32)  # all else is of rows 2 c and 2 c + 1
        visible = cuda.local.array((HALVES, 2), int32)
        highest = cuda.local.array((HALVES, 2), float32)
        total = cuda.local.array((HALVES, 2), float32)
        acc = cuda.local.array((ALL_TILES, 4), float32)
        for half in range(HALVES):
            row = first_row + 8 * half + g
            token, head = first + row // heads, head_tile * heads + row % heads
            is_row = row < ROWS and token < num_queries and head < heads_per_kv
            at = ((q_start + token) * q_stride + (kv_head * heads_per_kv + head) * head_size) // 2
            take_row(q_word, half, q, at, is_row, c)
            power = as_halves(q_word, half) * PER_UNIT if QUANTIZED else float32(1)
            for e in range(2):
                q_scale[half, e] = scale * cuda.shfl_sync(ALL, power, 4 * (2 * c + e)) if QUANTIZED else scale
                token = first + (first_row + 8 * half + 2 * c + e) // heads
                visible[half, e] = min(stop, seen_before + token) if PREFILL else stop
                highest[half, e], total[half, e] = NOTHING_YET, float32(0)
            for t in range(TILES):
                for e in range(4):
                    acc[half * TILES + t, e] = float32(0)
        if writes and stop == context:
            write_newest(
                new_k, new_v, new_slot, k_numbers, v_numbers, k_scales, v_scales, k_stride, v_stride, q_start, kv_head,
                num_kv_heads,
            )  # fmt: skip
        request_first(
            True, buffer, own_stages, start, stop, context, block_tables, table, k_cache, v_cache, k_scales,
            v_scales, kv_head, num_kv_heads,
        )  # fmt: skip

        score = cuda.local.array((ALL_GROUPS, 4), float32)  # of token g with rows 2 c, 2 c + 1 of q, then of g + 8
        p = cuda.local.array((ALL_GROUPS, 2), uint32)
        k_scale, v_scale = cuda.local.array(OWN, float32), cuda.local.array(OWN, float32)  # of tokens g, g + 8, ...
        log_scale = cuda.local.array(OWN, float32)  # log2 of v_scale
        for n in range(OWN):
            k_scale[n], v_scale[n], log_scale[n] = float32(1), float32(1), float32(0)
        # Where this lane finds its pieces of rows: other rows and pieces are a fixed distance away from one of these.
        own_k = (place(g, c), place(g, c ^ 4))
        piece, word = g * V_LOAD // 4, g * V_LOAD % 4 + V_START
        own_v = (int32(place(2 * c, piece) + word), int32(place(2 * c + 1, piece) + word))
        stage = own_stages
        base = start
        while base < stop:
            ahead = int32(base + STAGES * STRIDE)
            slot = slot_of(ahead, stop, block_tables, table)  # for `request` below: to look it up takes a while
            wait_for_oldest()
            meet()  # all have waited for their own requests, and read what others requested, too
            score_tokens(score, buffer, stage, q_word, own_k)
            if QUANTIZED:
                for n in range(OWN):
                    at = stage + SCALE_START + 8 * n + g
                    k_scale[n], v_scale[n] = buffer[at], buffer[at + STEP]
                    log_scale[n] = log2(max(v_scale[n], LEAST_SCALE))
            for half in range(HALVES):
                for e in range(EACH):
                    weigh(half, e, base + g, visible, score, q_scale, k_scale, v_scale, log_scale, highest, total, acc)
                for n in range(OWN):
                    j, f = n // 2 * HALVES + half, n % 2 * 2
                    p[j, n % 2] = transposed(pack(score[j, f], score[j, f + 1]))
            add_values(acc, buffer, stage, p, own_v)
            meet()  # all have read the stage, which is filled again now
            request(
                buffer, stage, slot, ahead < stop, k_cache, v_cache, k_scales, v_scales, kv_head, num_kv_heads
            )  # fmt: skip
            stage = int32(stage + STAGE) if stage < own_stages + (STAGES - 1) * STAGE else own_stages
            base = int32(base + STRIDE)

        wait_for_all()
        cuda.syncthreads()  # the buffer is free for the results
        put_results(buffer, 0 if PREFILL else warp, first_row, g, c, highest, total, acc)
        cuda.syncthreads()
        join(buffer, out, workspace, result_at, q_start, num_queries, first, kv_head, head_tile, num_kv_heads)

    merge = merger(heads, heads_per_kv, head_size, WARPS * WARP, q_kind.stored)
    attend = device_function(attend_tile)
    return ragged_kernel(attend, merge, tokens, window, writes, shared_bytes=4 * BUFFER)
