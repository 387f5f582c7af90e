"""Paged attention on a GPU: `paged_attention` for anybody, and `launch_attention` below it for the engine.

    paged_attention    checks its arguments, makes the output and the workspace, launches
    launch_attention   launches, and nothing else: it checks nothing, allocates nothing, waits for nothing. So a CUDA
                       graph can capture it, and the lengths that it is told may be larger than those on the GPU

A sequence with one query (a decode) is cut along its context; one with several (a prompt, or a chunk of it) along its
queries: see tiles.py. A batch of both kinds takes two launches, in which each kernel skips the other's sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minipage.attention.arguments import as_scale, as_window, check_shapes, check_tables
from minipage.attention.cuda import ordinary_cores, tensor_cores, warpgroups
from minipage.attention.cuda.cache import check_cache, launch_write_kv
from minipage.attention.cuda.compat import external_stream, has_room_to_share, num_processors
from minipage.attention.cuda.device_arrays import (
    Array,
    check_devices,
    check_rows,
    elements,
    empty,
    layout,
    stream_of,
    to_device,
    to_host,
    words,
    zeros,
)
from minipage.attention.cuda.kinds import Kind, kind_of
from minipage.attention.cuda.ordinary_cores import ordinary_kernel, pieces_of
from minipage.attention.cuda.tensor_cores import has_tensor_kernel, tensor_kernel
from minipage.attention.cuda.tiles import WARP, num_tiles
from minipage.attention.cuda.warpgroups import has_warpgroup_kernel, warpgroup_kernel
from minipage.errors import require

SPLIT_SIZE = 512  # tokens of a context that one block works on, if the answer may not depend on the rest of the batch
MOST_PIECES = 65_535  # what CUDA allows in the second dimension of a grid
UNIT = 128  # tokens that are not divided, if it may depend
SHORT = 512  # tokens of a context that is not divided: joining its parts would cost more time than it saves
FEW_SEQS = 16  # whose new K and V are written by the way: of many, a launch for all of them costs less
MOST_HEADS = 32  # of a tile of q, in any kernel
MOST_BLOCKS = 4  # for each multiprocessor, in any kernel, at once
MOST_TURNS = 3  # of blocks of a decode, one after the other; with 8 ragged batches were a tenth slower
SCALES_OF_MODELS = 1e-20, 1e6  # between these `choose_best` is right; the kernel of warpgroups cannot do with others
LOG2_E = 1.4426950408889634  # exp(x) = exp2(x * LOG2_E): the hardware has exp2


def paged_attention(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    block_tables: Array,
    context_lens: Array,
    query_start_loc: Array,
    scale: float,
    k_scales: Array | None = None,
    v_scales: Array | None = None,
    window: int | None = None,
) -> Array:
    """Attention of a ragged batch over K and V in blocks; arguments and shapes: `minipage.attention.arguments`.

    All arrays are on one GPU: PyTorch tensors, CuPy or numba arrays. q is float32, float16 or bfloat16 (PyTorch's, or
    as uint16); K and V are one of these too, or int8 or uint8 (fp8) with scales. The answer is like q, and is computed
    in the current stream of the library that made q.

    A NaN in K or V comes out for every query that sees its token. Of V, it may also come out for the queries just
    before, or just after those whose window reaches it (of the same tile: see tiles.py), because their weight for it
    is 0, and 0 * NaN is NaN. A prompt may also get NaN or infinity for scores beyond 2 ** 27, which no model has (see
    warpgroups.weigh), and for scales of K and V from 2 ** 104 on.

    Raises KernelArgumentError if they do not fit together, or no kernel has their numbers or head size. Nothing has
    been launched then.
    """
    check_shapes(*(layout(array).shape for array in (q, k_cache, v_cache)))
    check_arrays(q, k_cache, v_cache, k_scales, v_scales, block_tables, context_lens, query_start_loc)
    scale = as_scale(scale, np.float32)
    num_tokens, num_heads, head_size = layout(q).shape
    tables, contexts, starts = (to_host(a) for a in (block_tables, context_lens, query_start_loc))
    tables, contexts, starts = check_tables(
        num_tokens, layout(k_cache).shape, tables, contexts, starts, as_window(window)
    )

    out = empty(q, (num_tokens, num_heads, head_size), q.dtype)  # [num_tokens, num_heads, head_size]
    if 0 in layout(q).shape:
        return out
    max_query_len = int(np.diff(starts).max(initial=0))
    max_context_len = int(contexts.max(initial=0))
    longest = min(max_context_len, as_window(window))  # of what is read
    num_splits = len(contexts) * -(-longest // SPLIT_SIZE)
    require(
        num_splits <= MOST_PIECES,
        f"{len(contexts)} sequences of up to {longest} tokens are {num_splits} pieces of work, but a launch "
        f"takes {MOST_PIECES}: give it fewer sequences at a time.",
    )
    least, most = SCALES_OF_MODELS
    choose = choose_best if least < scale < most else choose_for_any_scale
    choice = choose(kind_of(layout(q).dtype, "q"), kind_of(layout(k_cache).dtype, "k_cache"), head_size)
    heads = heads_of_tile(choice, num_heads // layout(k_cache).shape[2])
    tiles = num_tiles(num_tokens, queries_of_tile(choice, heads), len(contexts))
    require(
        max_query_len == 1 or tiles <= MOST_PIECES,
        f"{num_tokens} queries, some of them of prompts, are {tiles} pieces of work, but a launch takes {MOST_PIECES}: "
        "give it fewer at a time.",
    )
    size = workspace_size(len(contexts), num_heads, head_size, longest, SPLIT_SIZE)
    workspace = zeros(q, (size,), "float32")  # [size]
    # In 32 bits everything that is read fits; the rest of the block tables may be anything.
    block_tables, context_lens, query_start_loc = (to_device(q, a.astype(np.int32)) for a in (tables, contexts, starts))
    launch_attention(
        q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale, k_scales, v_scales,
        out=out, workspace=workspace, max_query_len=max_query_len, max_context_len=max_context_len, stream=stream_of(q),
        split_size=SPLIT_SIZE, choose=choose, window=window,
    )  # fmt: skip
    return out


class KernelChoice(NamedTuple):
    """A kernel, and the sizes of a launch that suit it."""

    kernel_for: Callable[..., Any]  # tensor_kernel, or ordinary_kernel; of decodes, and of prompts, too, unless:
    num_threads: int  # of a block of a decode
    few_blocks: int  # of a decode, for each multiprocessor: enough for all of the memory's speed
    most_blocks: int  # this many run at once, and one starts while another ends
    decode_rows: int  # most rows of q in a block of a decode
    prefill_rows: int  # and of a prompt
    prefill_threads: int  # of a block of a prompt
    num_warps: int | None = None  # of a block of a decode, if the kernel has to be told
    prefill_kernel_for: Callable[..., Any] | None = None  # prompts have another


def choose_mma(q_kind: Kind, kv: Kind, head_size: int) -> KernelChoice:
    """Tensor cores as all GPUs have them."""
    return KernelChoice(
        tensor_kernel,
        num_threads=tensor_cores.NUM_WARPS * WARP,
        few_blocks=min(4, 512 // (head_size * kv.num_bytes)),
        most_blocks=MOST_BLOCKS,
        decode_rows=tensor_cores.TILE,
        prefill_rows=tensor_cores.PREFILL_WARPS * tensor_cores.TILE,
        prefill_threads=tensor_cores.PREFILL_WARPS * WARP,
    )


def with_warpgroups(choice: KernelChoice) -> KernelChoice:
    return choice._replace(
        prefill_kernel_for=warpgroup_kernel,
        prefill_rows=warpgroups.BLOCK_ROWS,
        prefill_threads=warpgroups.NUM_THREADS,
    )


def choose_ordinary(q_kind: Kind, kv: Kind, head_size: int) -> KernelChoice:
    rows = pieces_of(head_size, kv).rows_per_tile
    return KernelChoice(
        ordinary_kernel,
        num_threads=ordinary_cores.NUM_THREADS,
        few_blocks=2,
        most_blocks=3,
        decode_rows=rows,
        prefill_rows=rows,
        prefill_threads=ordinary_cores.NUM_THREADS,
    )


def choose_for_any_scale(q_kind: Kind, kv: Kind, head_size: int) -> KernelChoice:
    choose = choose_mma if has_tensor_kernel(q_kind, kv, head_size) else choose_ordinary
    return choose(q_kind, kv, head_size)


@cache
def choose_best(q_kind: Kind, kv: Kind, head_size: int) -> KernelChoice:
    """For scales as models have them: see SCALES_OF_MODELS."""
    choice = choose_for_any_scale(q_kind, kv, head_size)
    return with_warpgroups(choice) if has_warpgroup_kernel(q_kind, kv, head_size) else choice


def suited_to(
    choice: KernelChoice, head_size: int, num_seqs: int, num_kv_heads: int, heads_per_kv: int
) -> KernelChoice:
    """The choice for the decodes of this many sequences: blocks of more warps, if they are few. Then contexts are cut
    into fewer parts, or not at all, and joining takes less time (docs/gpu.md has the figures)."""
    each = num_processors() // tiles_of(choice, num_kv_heads, heads_per_kv)  # blocks of a tile: 1 on a multiprocessor
    if choice.kernel_for is not tensor_kernel or each < 2 or not has_room_to_share(tensor_cores.WIDE_BYTES):
        return choice
    if head_size == 64:
        return widened(choice, 4, 1) if each < num_seqs <= 3 * each else choice
    if num_seqs <= each:
        return widened(choice, tensor_cores.WIDE, 1)
    return widened(choice, 4, 2) if num_seqs <= 2 * each else choice


def widened(choice: KernelChoice, num_warps: int, blocks: int) -> KernelChoice:
    """The same with blocks of this many warps, and this many blocks for each multiprocessor."""
    return choice._replace(num_threads=num_warps * WARP, few_blocks=blocks, most_blocks=blocks, num_warps=num_warps)


def workspace_size(
    num_seqs: int, num_heads: int, head_size: int, max_context_len: int, split_size: int | None = None
) -> int:
    """How many float32 numbers `launch_attention` needs for the results of the parts of contexts that are cut.

    It is enough for smaller batches and shorter contexts, too, so that one workspace serves all.
    """
    if split_size:  # a block for each split; tiles are at least half full, so 2 * num_heads rows; two places for each
        num_blocks = num_seqs * -(-max_context_len // split_size)
        return num_blocks * (num_heads + 2 * 2 * num_heads * (head_size + 1))
    at_once = max(MOST_BLOCKS * num_processors(), num_heads)
    num_blocks = max(at_once, min(num_seqs * num_heads, MOST_TURNS * at_once))
    return num_blocks * (1 + 2 * min(MOST_HEADS, num_heads) * (head_size + 1))


class Grid(NamedTuple):
    """How a decode is shared out to blocks."""

    heads: int  # query heads of a tile, which a block reads K and V for
    tiles: int  # of all heads
    blocks: int  # for each of them
    unit: int  # tokens that are not divided
    share: int  # units of a block; 0: as many as make equal shares, but at least LEAST_SHARE tokens


def heads_of_tile(choice: KernelChoice, heads_per_kv: int) -> int:
    """As many as fit, or fewer so that all tiles have the same number, or almost."""
    return -(-heads_per_kv // -(-heads_per_kv // choice.decode_rows))


def tiles_of(choice: KernelChoice, num_kv_heads: int, heads_per_kv: int) -> int:
    """Of all heads."""
    return num_kv_heads * -(-heads_per_kv // heads_of_tile(choice, heads_per_kv))


def queries_of_tile(choice: KernelChoice, heads: int) -> int:
    """Of a prompt."""
    return max(2, choice.prefill_rows // heads)


def decode_grid(
    choice: KernelChoice, num_seqs: int, num_kv_heads: int, heads_per_kv: int, longest: int, split_size: int | None
) -> Grid:
    heads, tiles = heads_of_tile(choice, heads_per_kv), tiles_of(choice, num_kv_heads, heads_per_kv)
    if split_size:
        return Grid(heads, tiles, num_seqs * max(1, -(-longest // split_size)), split_size, 1)
    if longest <= SHORT:
        return Grid(heads, tiles, num_seqs, SHORT, 1)
    few, most = (max(1, num * num_processors() // tiles) for num in (choice.few_blocks, choice.most_blocks))
    return Grid(heads, tiles, decode_blocks(num_seqs, few, most), UNIT, 0)


def decode_blocks(num_seqs: int, few: int, most: int) -> int:
    """How many blocks share the contexts of a decode, for one tile of heads."""
    if most < num_seqs <= MOST_TURNS * most:
        return num_seqs  # and so contexts of one length are not cut: to join parts takes longer than to take turns
    blocks = few if num_seqs <= few else most
    unequal = blocks % num_seqs  # without these, contexts of one length are all cut alike, or not at all
    return blocks - unequal if num_seqs <= blocks and 8 * unequal <= blocks else blocks


class NewTokens(NamedTuple):
    """K and V that belong to the tokens of q, and are not in the cache yet."""

    k: Array  # [num_tokens, num_kv_heads, head_size], of the dtype of q
    v: Array
    slot_mapping: Array  # [num_tokens]; as launch_write_kv has it


def launch_attention(
    q: Array,
    k_cache: Array,
    v_cache: Array,
    block_tables: Array,
    context_lens: Array,
    query_start_loc: Array,
    scale: float,
    k_scales: Array | None = None,
    v_scales: Array | None = None,
    *,
    out: Array,
    workspace: Array,
    max_query_len: int,
    max_context_len: int,
    min_query_len: int = 1,
    stream: int = 0,
    split_size: int | None = None,
    choose: Callable[[Kind, Kind, int], KernelChoice] = choose_best,
    window: int | None = None,
    new: NewTokens | None = None,
) -> None:
    """Attention as `paged_attention` has it, into `out`, with everything on the GPU already and nothing checked.

    q may be rows of a larger array, with its last two axes contiguous. The tables are int32 and contiguous. A sequence
    without a context, such as fills up a batch, gets zeros.

    Args:
        out: [num_tokens, num_heads, head_size], contiguous, from a multiple of 4 bytes on.
        workspace: [workspace_size(...)] float32; zeros before the first launch, and not touched in between; for one
            stream at a time.
        max_query_len, max_context_len: at least the largest of the batch.
        min_query_len: at most the smallest of the batch; more than 1 says that there are no decodes.
        stream: the handle of a CUDA stream.
        split_size: tokens of a context that one block of a decode works on. Default: equal shares, the fastest; a fixed
            size makes the answer to a sequence independent, to the last bit, of the rest of the batch.
        choose: which kernel, for the kinds of q and of K and V, and the head size; choose_best is for SCALES_OF_MODELS.
        window: as `paged_attention` has it; there is a kernel for each.
        new: K and V of the tokens of q, which are written first. If all are decodes, of few sequences, one kernel does
            both: then the rest of K and V, and the tables, must have been there before the last kernel of the stream
            began, and are requested while it still runs.
    """
    queries = layout(q)
    num_tokens, num_heads, head_size = queries.shape
    block_size, num_kv_heads = layout(k_cache).shape[1:3]
    num_seqs, max_blocks = layout(block_tables).shape
    if num_tokens == 0:
        return
    heads_per_kv = num_heads // num_kv_heads
    q_kind, kv = kind_of(queries.dtype, "q"), kind_of(layout(k_cache).dtype, "k_cache")
    choice = choose(q_kind, kv, head_size)
    if max_query_len == 1 and not split_size:
        choice = suited_to(choice, head_size, num_seqs, num_kv_heads, heads_per_kv)
    window = as_window(window)
    grid = decode_grid(choice, num_seqs, num_kv_heads, heads_per_kv, min(max_context_len, window), split_size)
    options: dict[str, Any] = {"window": window} if window < max_context_len else {}  # otherwise all is seen
    of_decodes = options | ({"num_warps": choice.num_warps} if choice.num_warps else {})
    if new and max_query_len == 1 and num_seqs <= FEW_SEQS and choice.kernel_for is tensor_kernel:
        of_decodes["writes"] = True
    elif new:
        launch_write_kv(new.k, new.v, k_cache, v_cache, new.slot_mapping, k_scales, v_scales, stream=stream)
    k, v, slots = new or (q, q, query_start_loc)  # otherwise nobody looks at them
    arguments = (
        words(q), words(k_cache), words(v_cache),
        *(elements(workspace) if scales is None else elements(scales) for scales in (k_scales, v_scales)),
        *map(elements, (block_tables, context_lens, query_start_loc, out, workspace)),
        np.float32(scale * LOG2_E), queries.strides[0] // queries.dtype.itemsize, max_blocks, num_kv_heads,
        grid.unit, grid.share, words(k), words(v), elements(slots), elements(k_cache), elements(v_cache),
        *(layout(each).strides[0] // queries.dtype.itemsize for each in (k, v)),
    )  # fmt: skip
    cuda_stream = external_stream(stream)
    if min_query_len <= 1:
        decode = choice.kernel_for(q_kind, kv, head_size, block_size, heads_per_kv, grid.heads, 1, **of_decodes)
        decode[(grid.tiles, grid.blocks), choice.num_threads, cuda_stream](*arguments)
    if max_query_len > 1:
        tokens = queries_of_tile(choice, grid.heads)
        kernel_for = choice.prefill_kernel_for or choice.kernel_for
        prefill = kernel_for(q_kind, kv, head_size, block_size, heads_per_kv, grid.heads, tokens, **options)
        prefill[(grid.tiles, num_tiles(num_tokens, tokens, num_seqs)), choice.prefill_threads, cuda_stream](*arguments)


def check_arrays(q: Array, k_cache: Array, v_cache: Array, k_scales: Any, v_scales: Any, *tables: Array) -> None:
    """Raise KernelArgumentError unless kernels can read these arrays: their numbers, their memory, their device."""
    q_kind, kv = kind_of(layout(q).dtype, "q"), kind_of(layout(k_cache).dtype, "k_cache")
    require(
        layout(k_cache).dtype == layout(v_cache).dtype and not q_kind.is_quantized,
        f"q is {q_kind.name}, k_cache {kv.name}, v_cache {layout(v_cache).dtype}; q must be float32, float16 or "
        "bfloat16, and both caches alike.",
    )
    check_rows("q", q)
    check_cache(k_cache, v_cache, k_scales, v_scales)
    for array in tables:
        layout(array)  # raises, if it is not on the GPU
    alignment = 4 * pieces_of(layout(q).shape[2], kv).words  # bytes; also refuses a head size that no kernel has
    if has_tensor_kernel(q_kind, kv, layout(q).shape[2]):
        alignment = 16
    for name, array in (("k_cache", k_cache), ("v_cache", v_cache)):
        require(
            layout(array).address % alignment == 0,
            f"{name} starts at an address that is no multiple of {alignment}, which the kernels' loads need.",
        )
    check_devices(q, k_cache, v_cache, k_scales, v_scales, *tables)
