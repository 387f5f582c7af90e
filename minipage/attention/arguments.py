"""What every `paged_attention` takes, and the check that all versions share.

The signature is always

    paged_attention(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale,
                    k_scales=None, v_scales=None) -> out

    q                [num_tokens, num_heads, head_size]   queries of all sequences, one sequence after the other
    k_cache, v_cache [num_blocks, block_size, num_kv_heads, head_size]   one layer's blocks: of the dtype of q; or,
                     with q of float32, of float16, uint16 (the bits of bfloat16), or int8 or uint8 (fp8) with scales
    block_tables     [num_seqs, max_blocks]   integers; physical blocks in logical order, then anything
    context_lens     [num_seqs]   integers; tokens of each sequence in the cache, those being queried included
    query_start_loc  [num_seqs + 1]   integers; sequence s asks with q[query_start_loc[s] : query_start_loc[s + 1]]
    scale            float; scores are multiplied with it, usually 1 / sqrt(head_size)
    k_scales, v_scales  [num_blocks, block_size, num_kv_heads]   float32; of a quantized cache (see quantize.py)
    out              [num_tokens, num_heads, head_size]   like q

The queries of a sequence are its last tokens: one for a decode, more for a chunk of a prompt. A query sees itself and
all tokens before it. With grouped queries, `num_heads / num_kv_heads` query heads share each head of K and V
(Ainslie et al., GQA, arXiv 2305.13245).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from minipage.errors import KernelArgumentError

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]

Shape = tuple[int, ...]

HALVES = (np.float16, np.uint16)  # a number in two bytes: float16, and the bits of bfloat16


def require(condition: bool | np.bool, message: str | Callable[[], str]) -> None:
    """A message that has to be put together is a function: it takes longer than the checks, and is hardly ever read."""
    if not condition:
        raise KernelArgumentError(message if isinstance(message, str) else message())


def check_arguments(
    q: Floats,
    k_cache: Floats,
    v_cache: Floats,
    block_tables: Integers,
    context_lens: Integers,
    query_start_loc: Integers,
    k_scales: Floats | None = None,
    v_scales: Floats | None = None,
) -> None:
    """Raise KernelArgumentError unless the arrays fit together and every block that will be read exists."""
    check_shapes(q.shape, k_cache.shape, v_cache.shape)
    is_quantized = k_cache.dtype in (np.int8, np.uint8)
    require(
        q.dtype in (np.float32, np.float64)
        and k_cache.dtype == v_cache.dtype
        and (is_quantized or q.dtype == k_cache.dtype or (q.dtype == np.float32 and k_cache.dtype in HALVES)),
        lambda: (
            f"q is {q.dtype}, k_cache {k_cache.dtype}, v_cache {v_cache.dtype}; all three must be float32, or all "
            "float64, or q float32 and the caches float16, uint16 (bfloat16), or int8 or uint8 (fp8) with scales."
        ),
    )
    check_scales(is_quantized, k_cache.shape, k_scales, v_scales)
    require(
        k_cache.flags.c_contiguous and v_cache.flags.c_contiguous,
        "k_cache and v_cache must be C-contiguous, so that a block is one piece of memory: use np.ascontiguousarray.",
    )
    check_tables(len(q), k_cache.shape, block_tables, context_lens, query_start_loc)


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
    num_kv_heads, cache_head_size = k_cache[2:]
    require(head_size == cache_head_size, lambda: f"q has head_size {head_size}, the cache has {cache_head_size}.")
    require(
        num_kv_heads > 0 and num_heads % num_kv_heads == 0,
        lambda: f"{num_heads} query heads cannot share {num_kv_heads} KV heads evenly.",
    )


def check_scales(is_quantized: bool, k_cache: Shape, *both: Any) -> None:
    """both: k_scales and v_scales, arrays of any library or None."""
    for scales in both:
        require(
            tuple(scales.shape) == k_cache[:3]
            if is_quantized and scales is not None
            else is_quantized == (scales is not None),
            lambda: f"a quantized cache, and no other, comes with k_scales and v_scales of shape {k_cache[:3]}.",
        )


def check_tables(
    num_tokens: int, k_cache: Shape, block_tables: Integers, context_lens: Integers, query_start_loc: Integers
) -> None:
    """Whether every block that will be read exists."""
    num_blocks, block_size = k_cache[:2]
    for name, array in (
        ("block_tables", block_tables),
        ("context_lens", context_lens),
        ("query_start_loc", query_start_loc),
    ):
        require(array.dtype.kind in "iu", partial("{} has dtype {}; it must hold integers.".format, name, array.dtype))

    num_seqs = len(context_lens)
    require(
        block_tables.ndim == 2 and len(block_tables) == num_seqs and query_start_loc.shape == (num_seqs + 1,),
        lambda: (
            f"with {num_seqs} context_lens, block_tables must be [{num_seqs}, max_blocks] and query_start_loc "
            f"[{num_seqs + 1}]; they are {block_tables.shape} and {query_start_loc.shape}."
        ),
    )
    query_lens = query_start_loc[1:] - query_start_loc[:-1]  # [num_seqs]
    require(
        query_start_loc[0] == 0 and query_start_loc[-1] == num_tokens and (query_lens >= 0).all(),
        lambda: f"query_start_loc must rise from 0 to num_tokens = {num_tokens}; it is {query_start_loc.tolist()}.",
    )
    require(
        (context_lens >= query_lens).all(),
        "context_lens count the tokens being queried too, so none can be less than its sequence's number of queries.",
    )
    blocks_read = -(-context_lens // block_size)  # [num_seqs]
    require(
        (blocks_read <= block_tables.shape[1]).all(),
        lambda: (
            f"a context of {context_lens.max(initial=0)} tokens takes more blocks of {block_size} than the "
            f"{block_tables.shape[1]} columns of block_tables."
        ),
    )
    is_missing = (block_tables < 0) | (block_tables >= num_blocks)  # [num_seqs, max_blocks]
    require(
        not is_missing.any() or not (is_missing & (np.arange(block_tables.shape[1]) < blocks_read[:, None])).any(),
        lambda: f"block_tables points outside the cache, which has blocks 0 to {num_blocks - 1}.",
    )
