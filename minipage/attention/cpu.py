"""Paged attention on the CPU: numba, parallel, reading K and V straight from the blocks.

Nothing is gathered and no row of scores is ever stored. Each query walks its sequence's block table once and keeps,
for each head, three things: the highest score so far, the sum of the weights, and the weighted sum of the rows of V.
When a higher score turns up, what has been summed is scaled down to the new maximum. This is the online softmax
(Milakov and Gimelshein, arXiv 1805.02867), the idea under FlashAttention too.

    highest, total, acc = -inf, 0, 0
    for each K, V row of the sequence, block by block:
        score = q . K * scale
        if score > highest:   acc, total = acc * exp(highest - score), total * exp(highest - score);   highest = score
        weight = exp(score - highest);   total += weight;   acc += weight * V
    out = acc / total
"""

from __future__ import annotations

import math
import os
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from minipage.attention.arguments import Floats, Integers, check_arguments
from minipage.attention.halves import bfloat16_number, float16_number
from minipage.attention.quantize import FP8_VALUES

# Threads that wait for work shall sleep. By default GNU OpenMP lets them spin, and they take the cores from others that
# compute (NumPy's threads, too): on two busy cores, steps were measured ten times slower. Read at the first call.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


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
) -> Floats:
    """Attention of a ragged batch over K and V in blocks; arguments, shapes and dtypes: `minipage.attention.arguments`.

    Raises KernelArgumentError if they do not fit together. The first call ever compiles for some seconds; the machine
    code is then kept in numba's cache on disk.
    """
    check_arguments(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, k_scales, v_scales)
    query_lens = np.diff(query_start_loc)  # [num_seqs]
    seq_of_token = np.repeat(np.arange(len(context_lens)), query_lens)  # [num_tokens]
    # The last query of a sequence sees its whole context, the one before it one token less, and so on.
    num_visible = np.arange(1, len(q) + 1) + np.repeat(context_lens - query_start_loc[1:], query_lens)  # [num_tokens]
    # An item of work is one query token and a share of the heads, as many shares as threads. Shares vary slowest, so
    # every thread gets a part of *every* token, not the long contexts to one thread and the short ones to another;
    # and a share of neighbouring heads is one run of memory in each slot.
    kv_heads_per_item = -(-k_cache.shape[2] // numba.get_num_threads())
    heads_per_item = kv_heads_per_item * (q.shape[1] // k_cache.shape[2])
    if k_cache.dtype == np.float16:  # numba has no such type, so the kernel gets the bits
        k_cache, v_cache = k_cache.view(np.int16), v_cache.view(np.int16)  # [num_blocks, block_size, KH, head_size]
    out = np.empty(q.shape, q.dtype)  # [num_tokens, num_heads, head_size]
    _attend(
        np.ascontiguousarray(q),
        k_cache,
        v_cache,
        k_scales,
        v_scales,
        np.ascontiguousarray(block_tables, np.int32),
        seq_of_token.astype(np.int32),
        num_visible.astype(np.int32),
        q.dtype.type(scale),
        heads_per_item,
        out,
    )
    return out


def number(stored: Any) -> Any:
    """What a number in the cache stands for, but for the scale of its row. Replaced when a kernel is compiled."""
    raise NotImplementedError


@overload(number, inline="always")
def _number(stored):  # type: ignore[no-untyped-def]
    if stored == numba.types.uint8:
        return lambda stored: FP8_VALUES[stored]
    if stored == numba.types.int8:
        return lambda stored: np.float32(stored)
    if stored == numba.types.uint16:
        return lambda stored: bfloat16_number(stored)  # type: ignore[call-arg]
    if stored == numba.types.int16:
        return lambda stored: float16_number(stored)  # type: ignore[call-arg]
    return lambda stored: stored


def _attend_python(
    q: Floats,
    k_cache: Floats,
    v_cache: Floats,
    k_scales: Floats | None,
    v_scales: Floats | None,
    block_tables: Integers,
    seq_of_token: Integers,
    num_visible: Integers,
    scale: np.floating,
    heads_per_item: int,
    out: Floats,
) -> None:
    num_tokens, num_heads, head_size = q.shape
    block_size = k_cache.shape[1]
    heads_per_kv_head = num_heads // k_cache.shape[2]
    shares = -(-num_heads // heads_per_item)
    for item in numba.prange(shares * num_tokens):
        share, token = item // num_tokens, item % num_tokens
        heads = range(share * heads_per_item, min((share + 1) * heads_per_item, num_heads))
        blocks = block_tables[seq_of_token[token]]  # [max_blocks]
        highest = np.full(num_heads, -np.inf, q.dtype)  # [num_heads]
        total = np.zeros(num_heads, q.dtype)  # [num_heads]
        acc = np.zeros((num_heads, head_size), q.dtype)  # [num_heads, head_size]
        for first in range(0, num_visible[token], block_size):
            block = blocks[first // block_size]
            for offset in range(min(block_size, num_visible[token] - first)):
                for h in heads:
                    kv_head = h // heads_per_kv_head
                    k = k_cache[block, offset, kv_head]  # [head_size]
                    v = v_cache[block, offset, kv_head]  # [head_size]
                    score = scale * 0  # zero, in the dtype of q
                    for i in range(head_size):
                        score += q[token, h, i] * number(k[i])
                    score *= scale if k_scales is None else scale * k_scales[block, offset, kv_head]
                    if score > highest[h]:
                        shrink = math.exp(highest[h] - score)
                        total[h] *= shrink
                        for i in range(head_size):
                            acc[h, i] *= shrink
                        highest[h] = score
                    weight = math.exp(score - highest[h])
                    total[h] += weight
                    if v_scales is not None:
                        weight *= v_scales[block, offset, kv_head]
                    for i in range(head_size):
                        acc[h, i] += weight * number(v[i])
        for h in heads:
            for i in range(head_size):
                out[token, h, i] = acc[h, i] / total[h]


# Sums may be reordered (that is what lets them use vector instructions) and multiplications fused with additions;
# infinities must keep their meaning, for `highest` starts at one.
_attend = numba.njit(parallel=True, cache=True, fastmath={"reassoc", "contract", "nsz"})(_attend_python)
