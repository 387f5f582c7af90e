"""What every `paged_attention` takes, and the check that all versions share.

The signature is always

    paged_attention(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale,
                    k_scales=None, v_scales=None, window=None) -> out

    q                [num_tokens, num_heads, head_size]   queries of all sequences, one sequence after the other
    k_cache, v_cache [num_blocks, block_size, num_kv_heads, head_size]   one layer's blocks: of the dtype of q; or,
                     with q of float32, of float16, uint16 (the bits of bfloat16), or int8 or uint8 (fp8) with scales
    block_tables     [num_seqs, max_blocks]   integers; physical blocks in logical order, then anything
    context_lens     [num_seqs]   integers; tokens of each sequence in the cache, those being queried included
    query_start_loc  [num_seqs + 1]   integers; sequence s asks with q[query_start_loc[s] : query_start_loc[s + 1]]
    scale            float; scores are multiplied with it, usually 1 / sqrt(head_size)
    k_scales, v_scales  [num_blocks, block_size, num_kv_heads]   float32; of a quantized cache (see quantize.py)
    window           how many tokens a query sees, of which it is the last itself; None: all before it, too
    out              [num_tokens, num_heads, head_size]   like q

The queries of a sequence are its last tokens: one for a decode, more for a chunk of a prompt. A query sees itself and
all tokens before it, as far as the window reaches; blocks that no query sees are not read, and need not exist. With
grouped queries, `num_heads / num_kv_heads` query heads share each head of K and V (Ainslie et al., GQA, arXiv
2305.13245).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minipage.errors import KernelArgumentError, require, shown
from minipage.simd.arrays import Floats

Shape = tuple[int, ...]

# What a cache may hold in fewer bytes: float16, the bits of bfloat16, int8, and fp8; kernels compute with float32 then.
NARROW = tuple(map(np.dtype, (np.float16, np.uint16, np.int8, np.uint8)))
QUANTIZED = NARROW[2:]
# As dtypes, because an array's dtype is compared with these faster than with np.float32.
FLOATS = FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
INT64 = np.dtype(np.int64)
LARGEST_LENGTH = 2**30  # tokens of a context; kernels on GPUs count in 32 bits, and a few steps on, past its end


class Tables(NamedTuple):
    """Which tokens are whose, in arrays that a kernel can trust: int64, C-contiguous, writable, aligned."""

    block_tables: npt.NDArray[np.int64]  # [num_seqs, max_blocks]
    context_lens: npt.NDArray[np.int64]  # [num_seqs]
    query_start_loc: npt.NDArray[np.int64]  # [num_seqs + 1]


class Arguments(NamedTuple):
    """Everything that `paged_attention` was given, checked: nothing outside these arrays will be read."""

    q: Floats  # [num_tokens, num_heads, head_size]
    k_cache: Floats  # [num_blocks, block_size, num_kv_heads, head_size], C-contiguous
    v_cache: Floats  # [num_blocks, block_size, num_kv_heads, head_size], C-contiguous
    tables: Tables
    scale: float
    k_scales: Floats | None  # [num_blocks, block_size, num_kv_heads]
    v_scales: Floats | None  # [num_blocks, block_size, num_kv_heads]
    window: int  # LARGEST_LENGTH: there is none


def as_array(name: str, given: Any) -> npt.NDArray[Any]:
    """What was given as an array: the same memory if it is one already, a copy if it is a list."""
    if type(given) is np.ndarray:
        return given
    require(not np.ma.is_masked(given), f"{name} is a masked array; fill in what is masked, since all of it is used.")
    try:
        return np.asarray(given)
    except Exception as error:  # an object may bring a conversion of its own, which may raise anything
        raise KernelArgumentError(f"{name} cannot be made an array: {error}") from error


def as_integers(name: str, given: Any) -> npt.NDArray[np.int64]:
    """Integers of any size and layout as int64, the one kind that is computed with.

    In the kinds that callers have, differences and roundings wrap around: -np.uint8(250) is 6. What is too large for
    int64 becomes the largest there is, which is as much too large for everything here.
    """
    array = as_array(name, given)
    if array.dtype == INT64 and array.flags.carray:
        return array
    require(
        array.dtype.kind in "iu" or (array.size == 0 and array.dtype == FLOAT64),  # the latter: an empty list
        lambda: f"{name} has dtype {array.dtype}; it must hold integers of up to 64 bits.",
    )
    if array.dtype.kind == "u" and array.dtype.itemsize == 8:
        array = np.minimum(array, np.iinfo(np.int64).max)  # [...]
    return array.astype(np.int64, order="C")  # [...]


def as_scale(scale: Any, dtype: npt.DTypeLike) -> float:
    """Anything that Python counts as a real number, if it is finite in `dtype`."""
    if isinstance(scale, np.ndarray) and scale.shape == ():
        scale = scale[()]  # a number in an array of no axes
    is_real = isinstance(scale, Real)
    require(
        is_real and abs(scale) <= float(np.finfo(dtype).max),  # false for NaN
        lambda: (
            f"scale is {shown(scale)}; it must be a finite number that {np.dtype(dtype)} can hold, usually "
            "1 / sqrt(head_size)."
        ),
    )
    return float(scale)


def as_window(window: Any) -> int:
    """How many tokens a query sees at most."""
    is_one = window is None or (isinstance(window, Integral) and int(window) >= 1)
    require(is_one, lambda: f"window is {shown(window)}; it must be None, or a whole number of tokens from 1 on.")
    return LARGEST_LENGTH if window is None else min(int(window), LARGEST_LENGTH)


def check_arguments(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    block_tables: Any,
    context_lens: Any,
    query_start_loc: Any,
    scale: Any,
    k_scales: Any = None,
    v_scales: Any = None,
    window: Any = None,
) -> Arguments:
    """What was given, as arrays; raise KernelArgumentError unless they fit together and every block to read exists."""
    q, k_cache, v_cache = as_array("q", q), as_array("k_cache", k_cache), as_array("v_cache", v_cache)
    k_scales = None if k_scales is None else as_array("k_scales", k_scales)
    v_scales = None if v_scales is None else as_array("v_scales", v_scales)
    check_shapes(q.shape, k_cache.shape, v_cache.shape)
    require(
        q.dtype in FLOATS
        and k_cache.dtype == v_cache.dtype
        and (q.dtype == k_cache.dtype or (q.dtype == FLOAT32 and k_cache.dtype in NARROW)),
        lambda: (
            f"q is {q.dtype}, k_cache {k_cache.dtype}, v_cache {v_cache.dtype}; all three must be float32, or all "
            "float64, or q float32 and the caches float16, uint16 (bfloat16), or int8 or uint8 (fp8) with scales."
        ),
    )
    check_scales(k_cache.dtype in QUANTIZED, k_cache.shape, k_scales, v_scales)
    for cache in (k_cache, v_cache):
        require(
            cache.flags.c_contiguous and cache.flags.aligned,
            "k_cache and v_cache must be C-contiguous, so that a block is one piece of memory, and aligned: "
            "use np.ascontiguousarray, or a copy.",
        )
    tables = check_tables(len(q), k_cache.shape, block_tables, context_lens, query_start_loc, window)
    return Arguments(q, k_cache, v_cache, tables, as_scale(scale, q.dtype), k_scales, v_scales, as_window(window))


def check_shapes(q: Shape, k_cache: Shape, v_cache: Shape) -> None:
    """Of arrays of any library."""
    require(len(q) == 3, lambda: f"q has shape {q}; it must be [num_tokens, num_heads, head_size].")
    require(
        len(k_cache) == 4 and k_cache == v_cache,
        lambda: (
            f"k_cache has shape {k_cache} and v_cache {v_cache}; "
            "both must be [num_blocks, block_size, num_kv_heads, head_size]."
        ),
    )
    num_heads, head_size = q[1:]
    block_size, num_kv_heads, cache_head_size = k_cache[1:]
    require(block_size > 0, lambda: f"k_cache has shape {k_cache}; a block must have room for at least one token.")
    require(head_size == cache_head_size, lambda: f"q has head_size {head_size}, the cache has {cache_head_size}.")
    require(
        num_kv_heads > 0 and num_heads % num_kv_heads == 0,
        lambda: f"{num_heads} query heads cannot share {num_kv_heads} KV heads evenly.",
    )


def check_scales(is_quantized: bool, k_cache: Shape, *both: Any) -> None:
    """both: k_scales and v_scales, arrays of any library (or their layouts) or None."""
    for scales in both:
        require(
            tuple(scales.shape) == k_cache[:3] and scales.dtype == FLOAT32
            if is_quantized and scales is not None
            else is_quantized == (scales is not None),
            lambda: f"a quantized cache, and no other, has k_scales and v_scales of shape {k_cache[:3]}, float32.",
        )


def check_tables(
    num_tokens: int, k_cache: Shape, block_tables: Any, context_lens: Any, query_start_loc: Any, window: Any
) -> Tables:
    """The three as int64, in which nothing wraps around; raise unless every block that will be read exists."""
    num_blocks, block_size = k_cache[:2]
    block_tables = as_integers("block_tables", block_tables)  # [num_seqs, max_blocks]
    context_lens = as_integers("context_lens", context_lens)  # [num_seqs]
    query_start_loc = as_integers("query_start_loc", query_start_loc)  # [num_seqs + 1]
    require(context_lens.ndim == 1, lambda: f"context_lens has shape {context_lens.shape}; it must be [num_seqs].")
    num_seqs = len(context_lens)
    require(
        block_tables.ndim == 2 and len(block_tables) == num_seqs and query_start_loc.shape == (num_seqs + 1,),
        lambda: (
            f"with {num_seqs} context_lens, block_tables must be [{num_seqs}, max_blocks] and query_start_loc "
            f"[{num_seqs + 1}]; they are {block_tables.shape} and {query_start_loc.shape}."
        ),
    )
    require(
        query_start_loc[0] == 0
        and query_start_loc[-1] == num_tokens
        and (query_start_loc[1:] >= query_start_loc[:-1]).all(),
        lambda: f"query_start_loc must rise from 0 to num_tokens = {num_tokens}; it is {query_start_loc.tolist()}.",
    )
    query_lens = query_start_loc[1:] - query_start_loc[:-1]  # [num_seqs]; of what lies between 0 and num_tokens
    require(
        (context_lens >= query_lens).all(),
        "context_lens count the tokens being queried too, so none can be less than its sequence's number of queries.",
    )
    longest = int(context_lens.max(initial=0))
    require(
        longest <= LARGEST_LENGTH,
        lambda: f"context_lens has more than {LARGEST_LENGTH:,} tokens; no kernel takes longer contexts.",
    )
    require(
        -(-longest // block_size) <= block_tables.shape[1],
        lambda: (
            f"a context of {longest} tokens takes more blocks of {block_size} than the {block_tables.shape[1]} columns "
            "of block_tables."
        ),
    )
    # Without their signs, negative numbers are large ones too. Either is fine where nothing is read.
    if block_tables.view(np.uint64).max(initial=0) >= num_blocks:
        is_missing = (block_tables < 0) | (block_tables >= num_blocks)  # [num_seqs, max_blocks]
        blocks_read = -(-context_lens // block_size)  # [num_seqs]
        blocks_behind = np.maximum(context_lens - query_lens + 1 - as_window(window), 0) // block_size  # [num_seqs]
        columns = np.arange(block_tables.shape[1])  # [max_blocks]
        is_read = (blocks_behind[:, None] <= columns) & (columns < blocks_read[:, None])  # [num_seqs, max_blocks]
        require(
            not (is_missing & is_read).any(),
            lambda: f"block_tables points outside the cache, which has blocks 0 to {num_blocks - 1}.",
        )
    return Tables(block_tables, context_lens, query_start_loc)


def check_copies(pairs: npt.NDArray[np.int64], old: Sequence[Any], new: Sequence[Any]) -> None:
    """pairs: (source, destination) of each copy; old, new: arrays [num_layers, num_blocks, ...] of any library, or
    their layouts."""
    require(
        pairs.ndim == 2 and pairs.shape[1] == 2,
        lambda: f"copies must be pairs of blocks, (source, destination), not of shape {pairs.shape}.",
    )
    require(
        [(a.dtype, a.shape[:1], a.shape[2:]) for a in old] == [(a.dtype, a.shape[:1], a.shape[2:]) for a in new],
        "blocks can be copied only between caches of one dtype, whose layers, and blocks, are of one shape.",
    )
    for blocks, array in zip(pairs.T, (old[0], new[0])):
        require(
            blocks.min() >= 0 and blocks.max() < array.shape[1],
            partial("copies names a block outside the cache, which has blocks 0 to {}.".format, array.shape[1] - 1),
        )
