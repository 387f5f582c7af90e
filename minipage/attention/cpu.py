"""Paged attention on the CPU: numba, parallel, reading K and V straight from the blocks.

Nothing is gathered for a decode, and no scores are kept. Whoever walks along a block table holds three things for each
head: the highest score so far, the sum of the weights, and the weighted sum of the rows of V.

    highest, total, acc = -inf, 0, 0
    for the next few tokens of the context:
        scores = q . K * scale
        if one is higher:     acc, total = acc * exp(highest - score), total * exp(highest - score);   highest = score
        weights = exp(scores - highest);   total += sum of weights;   acc += weights . V
    out = acc / total

This is the online softmax (Milakov and Gimelshein, arXiv 1805.02867), the idea under FlashAttention too. Two results of
that kind can be joined in the same way, so a context may be cut into pieces:

    decode     q ─▶ [── piece 0 ──][── piece 1 ──][─ 2 ─]      each thread takes a share, then joined ("split-KV")
    prefill    a tile of queries ─▶ [keys][keys][keys][ke╲     two products of small matrices with each tile of keys

A decode reads every number of K and V once and uses it once for each query head: the memory is the limit. In a prefill
all queries of a tile use what was read once: the arithmetic is the limit. How anything is summed up depends on the
sequence alone, never on what else is in the batch or how many threads there are.
"""

from __future__ import annotations

import numba
import numpy as np

from minipage.attention.arguments import check_arguments
from minipage.attention.decode import decode
from minipage.attention.prefill import prefill
from minipage.simd.arrays import Floats, Integers, as_they_lie
from minipage.simd.vectors import LANES

MANY = 4  # with this many queries a sequence is a prefill


def paged_attention(
    q: Floats,
    k_cache: Floats,
    v_cache: Floats,
    block_tables: Integers,
    context_lens: Integers,
    query_start_loc: Integers,
    scale: float,
    k_scales: Floats | None = None,
    v_scales: Floats | None = None,
    window: int | None = None,
) -> Floats:
    """Attention of a ragged batch over K and V in blocks; arguments, shapes and dtypes: `minipage.attention.arguments`.

    Raises KernelArgumentError if they do not fit together. The first call ever compiles for some seconds; the machine
    code is then kept in numba's cache on disk.
    """
    q, k_cache, v_cache, tables, scale, k_scales, v_scales, window = check_arguments(
        q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale, k_scales, v_scales, window
    )
    _, block_size, num_kv_heads, head_size = k_cache.shape
    out = np.empty(q.shape, q.dtype)  # [num_tokens, num_heads, head_size]
    if out.size == 0:
        return out
    if k_cache.dtype == np.float16:  # numba has no such type, so the kernels get the bits
        k_cache, v_cache = k_cache.view(np.int16), v_cache.view(np.int16)  # shapes as before
    # k and v: each [num_slots, num_kv_heads, head_size]; k_scales and v_scales: each [num_slots, num_kv_heads]
    k, v = (a.reshape(-1, num_kv_heads, head_size) for a in (k_cache, v_cache))
    scales = [None if a is None else as_they_lie(a).reshape(-1, num_kv_heads) for a in (k_scales, v_scales)]
    # The kernel for one query is made for rows of whole vectors, as all common models have them.
    query_lens = tables.query_start_loc[1:] - tables.query_start_loc[:-1]  # [num_seqs]
    is_prefill = query_lens >= (MANY if head_size % LANES == 0 else 1)  # [num_seqs]
    is_decode = (query_lens > 0) & ~is_prefill  # [num_seqs]
    arguments = as_they_lie(q), k, v, *scales, block_size, *tables, q.dtype.type(scale), window, out
    if is_decode.any():
        decode(*arguments, np.flatnonzero(is_decode), numba.get_num_threads())
    if is_prefill.any():
        prefill(*arguments, np.flatnonzero(is_prefill))
    return out
