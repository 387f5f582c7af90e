"""Paged attention on the GPU's ordinary cores: any kinds of numbers, any number of query heads for each KV head.

(Tensor cores, of tensor_cores.py, multiply matrices; the ordinary ones multiply two numbers at a time.)

A block of four warps takes some rows of q that need the same K and V: the query heads that share a KV head, and in a
prompt several tokens of each. Every warp walks over its share of the tokens with an online softmax of its own, and the
sixteen bytes that a lane loads are the same piece of every row of K and V that it sees:

    warp      lanes 0-15   one token's K, 8 numbers of bfloat16 a lane      so two tokens with one load, head size 128;
              lanes 16-31  the next token's                                 UNROLL loads are on their way at a time

    score     each lane multiplies its 8 numbers, shuffles add up the lanes of a token
    softmax   each group of lanes keeps highest score and total for its own tokens
    V         each lane adds weight * its 8 numbers to its 8 sums
    at last   warps and groups of lanes meet in shared memory: what one of them found counts exp2(its highest - highest)

A row longer than 32 pieces is read by the whole warp in several loads; a lane's second piece is 32 pieces after its
first. Then fewer tokens are under way, and as many bytes.

A long context is the work of several blocks ("flash-decoding", Dao et al. 2023), so that few long contexts fill the
chip as well as many short ones. `tiles.py` cuts, `merge.py` joins what they find. If contexts are cut into splits of a
fixed number of tokens, what else is in the batch changes not a bit of the result; equal shares are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from minipage.attention.cuda.compat import cuda, device_function, types
from minipage.attention.cuda.kinds import LOWEST, Kind
from minipage.attention.cuda.merge import joiner, merger
from minipage.attention.cuda.ptx import exp2, load_8_bytes, load_16_bytes
from minipage.attention.cuda.tiles import ragged_kernel
from minipage.errors import require

float32, int32, uint32 = types.float32, types.int32, types.uint32

WARP = 32
NUM_WARPS = 4
NUM_THREADS = NUM_WARPS * WARP
UNROLL = 4  # loads of K, and of V, that a warp has under way
NUMBERS = 32  # of q, and of the result, that a lane keeps in registers
LARGEST_HEAD = 512  # numbers; then a lane has 16 of each row
ALL = 0xFFFFFFFF  # the lanes that take part in a shuffle


class Pieces(NamedTuple):
    """How a row of K or V is shared out to the lanes of a warp."""

    words: int  # of a piece, which one load brings: 4, 2 or 1
    per_lane: int  # pieces of the row that one lane has
    lanes: int  # that share the row; a power of two
    per_word: int  # numbers

    @property
    def numbers(self) -> int:
        """How many of a row one lane has."""
        return self.per_lane * self.words * self.per_word

    @property
    def rows_per_tile(self) -> int:
        """How many rows of q a block works on."""
        return NUMBERS // self.numbers


def pieces_of(head_size: int, kv: Kind) -> Pieces:
    """Raises KernelArgumentError if there is no kernel for such rows."""
    row_bytes = head_size * kv.num_bytes
    require(
        row_bytes % 4 == 0 and head_size <= LARGEST_HEAD,
        f"head_size {head_size} in {kv.name}: the CUDA kernels read rows of K and V that are a multiple of 4 bytes and "
        f"at most {LARGEST_HEAD} numbers; these are {row_bytes} bytes.",
    )
    sizes = (2, 1) if kv.num_bytes == 1 else (4, 2, 1)  # of bytes 8 at once, because each is a number to keep
    words = next(words for words in sizes if row_bytes % (4 * words) == 0)
    num_pieces = max(1, row_bytes // (4 * words))
    per_lane = -(-num_pieces // WARP)
    lanes = 1 << (-(-num_pieces // per_lane) - 1).bit_length()
    return Pieces(words, per_lane, lanes, kv.per_word)


class Products(NamedTuple):
    """How q and K are multiplied, and in what form a lane keeps its numbers of q for that."""

    q_type: Any
    q_width: int  # how many of that type it takes for each row
    keep: Any  # (q_kept, r, i, x): x is the i-th number of row r
    multiply: Any  # (score, u, q_kept, k): score[u, r] = the sum of row r's numbers times those of k[u], for every r


def float_products(kv: Kind, rows: int, words: int) -> Products:
    """One by one, in float32."""
    PER_WORD, number = kv.per_word, kv.number

    def keep(q_kept, r, i, x):
        q_kept[r, i] = x

    def multiply(score, u, q_kept, k):
        for r in range(rows):
            score[u, r] = float32(0)
        for w in range(words):
            for i in range(PER_WORD):
                x = number(k[u, w], i)
                for r in range(rows):
                    score[u, r] += q_kept[r, w * PER_WORD + i] * x

    return Products(float32, words * PER_WORD, device_function(keep), device_function(multiply))


@cache
def ordinary_kernel(
    q_kind: Kind, kv: Kind, head_size: int, block_size: int, heads_per_kv: int, heads: int, tokens: int,
    products: Callable[[Kind, int, int], Products] = float_products, window: int | None = None,
) -> Any:  # fmt: skip
    """The kernel for these numbers and sizes.

    Args:
        heads_per_kv: query heads of a KV head.
        heads, tokens: a tile of q is `heads` of these heads for each of `tokens` tokens; 1 token in decodes.
        products: how q and K are multiplied.
        window: how many tokens a query sees; None: all before it.
    """
    PIECES = pieces_of(head_size, kv)
    PIECE_WORDS, PER_LANE, LANES = PIECES.words, PIECES.per_lane, PIECES.lanes
    PER_WORD = kv.per_word
    PIECE = PIECE_WORDS * PER_WORD  # numbers
    WORDS = PER_LANE * PIECE_WORDS  # of a row that one lane has
    COLUMNS = PIECES.numbers  # the same in numbers
    AT_ONCE = WARP // LANES  # tokens that a warp reads side by side
    DEPTH = max(1, UNROLL // PER_LANE)  # tokens that a lane has under way
    STEP = AT_ONCE * DEPTH
    BLOCK_STEP = STEP * NUM_WARPS
    PARTS = AT_ONCE * NUM_WARPS
    ROWS = heads * tokens
    HIGHEST = PARTS * ROWS * head_size  # where they are in shared memory
    TOTALS = HIGHEST + PARTS * ROWS
    FOUND = TOTALS + PARTS * ROWS
    ROW_WORDS = head_size * kv.num_bytes // 4
    HEAD_TILES = -(-heads_per_kv // heads)
    QUANTIZED, PREFILL = kv.is_quantized, tokens > 1
    WINDOW = window or 0  # a decode starts behind it; of the queries of a prompt each has another one
    Q_PER_WORD, q_number, number = q_kind.per_word, q_kind.number, kv.number
    load = loader(PIECE_WORDS)
    Q_TYPE, Q_WIDTH, keep, multiply = products(kv, ROWS, WORDS)
    join = joiner(PARTS, heads, tokens, heads_per_kv, head_size, NUM_THREADS, q_kind.stored)

    def attend_tile(
        seq, first, start, stop, result_at, q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens,
        query_start_loc, out, workspace, scale, q_stride, max_blocks, num_kv_heads,
        new_k, new_v, slot_mapping, k_numbers, v_numbers, k_stride, v_stride,
    ):  # fmt: skip
        # which rows of q, which tokens of K and V
        kv_head, head_tile = cuda.blockIdx.x // HEAD_TILES, cuda.blockIdx.x % HEAD_TILES
        context, q_start = context_lens[seq], query_start_loc[seq]
        num_queries = query_start_loc[seq + 1] - q_start
        seen_before = context - num_queries + 1  # query i sees seen_before + i tokens
        if PREFILL:
            stop = seen_before + min(first + tokens, num_queries) - 1
            if WINDOW:
                start = max(0, seen_before + first - WINDOW)

        lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
        part, own = lane // LANES, lane % LANES  # which token of those side by side, which pieces of its row
        q_kept = cuda.local.array((ROWS, Q_WIDTH), Q_TYPE)
        acc = cuda.local.array((ROWS, COLUMNS), float32)
        highest = cuda.local.array(ROWS, float32)
        total = cuda.local.array(ROWS, float32)
        for r in range(ROWS):
            token, head = first + r // heads, head_tile * heads + r % heads
            is_row = token < num_queries and head < heads_per_kv
            start_of_row = (q_start + token) * q_stride + (kv_head * heads_per_kv + head) * head_size
            for p in range(PER_LANE):
                column = (p * LANES + own) * PIECE
                is_inside = is_row and column < head_size
                for i in range(PIECE):
                    at = start_of_row + column + i
                    x = q_number(q[at // Q_PER_WORD], at % Q_PER_WORD) if is_inside else float32(0)
                    keep(q_kept, r, p * PIECE + i, x * scale)
        for r in range(ROWS):
            highest[r], total[r] = LOWEST, float32(0)
            for i in range(COLUMNS):
                acc[r, i] = float32(0)

        k = cuda.local.array((DEPTH, WORDS), uint32)
        v = cuda.local.array((DEPTH, WORDS), uint32)
        k_scale = cuda.local.array(DEPTH, float32)
        v_scale = cuda.local.array(DEPTH, float32)
        score = cuda.local.array((DEPTH, ROWS), float32)
        for base in range(start + warp * STEP, stop, BLOCK_STEP):
            for u in range(DEPTH):
                token = min(base + u * AT_ONCE + part, stop - 1)  # past the end: the last one again, with weight 0
                slot = block_tables[seq * max_blocks + token // block_size] * block_size + token % block_size
                row = slot * num_kv_heads + kv_head
                for p in range(PER_LANE):
                    word = (p * LANES + own) * PIECE_WORDS
                    at = row * ROW_WORDS + (word if word < ROW_WORDS else 0)
                    load(k, u, p * PIECE_WORDS, k_cache, at)
                    load(v, u, p * PIECE_WORDS, v_cache, at)
                if QUANTIZED:
                    k_scale[u], v_scale[u] = k_scales[row], v_scales[row]
            for u in range(DEPTH):
                multiply(score, u, q_kept, k)
                for r in range(ROWS):
                    x = score[u, r]
                    bit = LANES // 2
                    while bit > 0:
                        x += cuda.shfl_xor_sync(ALL, x, bit)
                        bit //= 2
                    if QUANTIZED:
                        x *= k_scale[u]
                    visible = min(stop, seen_before + first + r // heads)
                    is_seen = base + u * AT_ONCE + part < visible
                    if PREFILL and WINDOW:
                        is_seen = is_seen and base + u * AT_ONCE + part >= seen_before + first + r // heads - WINDOW
                    score[u, r] = x if is_seen else LOWEST
            for r in range(ROWS):
                new = highest[r]
                for u in range(DEPTH):
                    new = max(new, score[u, r])
                shrink = exp2(highest[r] - new)
                highest[r] = new
                total[r] *= shrink
                for i in range(COLUMNS):
                    acc[r, i] *= shrink
                for u in range(DEPTH):
                    weight = exp2(score[u, r] - new)
                    total[r] += weight
                    score[u, r] = weight * v_scale[u] if QUANTIZED else weight
            for u in range(DEPTH):
                for w in range(WORDS):
                    for i in range(PER_WORD):
                        x = number(v[u, w], i)
                        for r in range(ROWS):
                            acc[r, w * PER_WORD + i] += score[u, r] * x

        # join what the warps, and the groups of lanes in them, have found
        found = cuda.shared.array(FOUND, float32)
        for r in range(ROWS):
            at = (warp * AT_ONCE + part) * ROWS + r
            if own == 0:
                found[HIGHEST + at] = highest[r]
                found[TOTALS + at] = total[r]
            for p in range(PER_LANE):
                column = (p * LANES + own) * PIECE
                if column < head_size:
                    for i in range(PIECE):
                        found[at * head_size + column + i] = acc[r, p * PIECE + i]
        cuda.syncthreads()
        join(found, out, workspace, result_at, q_start, num_queries, first, kv_head, head_tile, num_kv_heads)

    merge = merger(heads, heads_per_kv, head_size, NUM_THREADS, q_kind.stored)
    return ragged_kernel(device_function(attend_tile), merge, tokens, window)


def loader(words: int) -> Any:
    """(array, u, w, memory, i): array[u, w:] = words i, i + 1, ... of memory, with one load."""
    if words == 4:

        def load(array, u, w, memory, i):
            array[u, w], array[u, w + 1], array[u, w + 2], array[u, w + 3] = load_16_bytes(memory, i)
    elif words == 2:

        def load(array, u, w, memory, i):
            array[u, w], array[u, w + 1] = load_8_bytes(memory, i)
    else:

        def load(array, u, w, memory, i):
            array[u, w] = memory[i]

    return device_function(load)
