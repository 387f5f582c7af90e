"""Lesson 5: paged attention, in NumPy. Replace each `raise NotImplementedError(...)` by code of yours.

K and V of a sequence lie in blocks, anywhere in the cache. Attention has to find them through the block table:

    block_table  [7, 1, 3]      context_len 10, block_size 4
    k_cache[7]   tokens 0-3     k_cache[1]   tokens 4-7     k_cache[3]   tokens 8 and 9, then two slots of rubbish

5.1 to 5.3 do it the obvious way: gather, then ordinary attention. 5.4 goes block by block and gathers nothing, which is
how fast kernels do it. Shapes: H query heads, KH heads of K and V, D = head_size.

Arrays come in float32; where no dtype is named, what you return is an array of float32 or float64, as you like. What is
handed in belongs to somebody else: read it, and do not write into it, not even over the NaN in the cache.
"""

from __future__ import annotations

import numpy as np  # noqa: F401 (you will use it)


def gather(cache, block_table, context_len):
    """Exercise 5.1: the K (or V) of one sequence, in one piece.

    Args:
        cache: [num_blocks, block_size, KH, D], k_cache or v_cache.
        block_table: [max_blocks] integers, physical blocks in logical order. What comes after the blocks that
            `context_len` tokens fill is anything at all, and must not be used.
        context_len: how many tokens the sequence has in the cache, at least 1.

    Returns:
        [context_len, KH, D]. Of the last block only the slots that hold tokens: the others may be NaN.
    """
    raise NotImplementedError(
        "Exercise 5.1: index the cache with the blocks, join them, cut off what is not a token"
    )


def attend(q, k, v, scale):
    """Exercise 5.2: ordinary attention of one query token to all of k and v.

    Args:
        q: [H, D], the query of one token.
        k, v: [n, KH, D]. With KH < H (grouped queries), query heads 0 to H / KH - 1 share head 0 of k and v, the next
            H / KH of them head 1, and so on.
        scale: scores are multiplied with it.

    Returns:
        [H, D], for each head the mean of v, weighted with softmax(scores). Scores may be tens of thousands, of either
        sign, and of each head others: take the head's own highest score off before np.exp, or it overflows.
    """
    raise NotImplementedError("Exercise 5.2: scores, softmax, weighted mean of v")


def paged_attention(
    q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale
):
    """Exercise 5.3: attention of a ragged batch, the kernel of the real engine.

    The queries of a sequence are its last tokens: one for a decode, more for a chunk of a prompt. Each sees itself and
    all tokens before it, but none after it.

    Args:
        q: [num_tokens, H, D], of all sequences, one sequence after the other; float32 or float64.
        k_cache, v_cache: [num_blocks, block_size, KH, D].
        block_tables: [num_seqs, max_blocks]; what comes after the blocks of a sequence is anything, as in 5.1.
        context_lens: [num_seqs], tokens in the cache, those being queried included; at least 1.
        query_start_loc: [num_seqs + 1]; sequence s asks with q[query_start_loc[s] : query_start_loc[s + 1]]. A
            sequence may have no queries at all.
        scale: as above.

    Returns:
        [num_tokens, H, D], of q's dtype.
    """
    raise NotImplementedError(
        "Exercise 5.3: for each sequence gather, then attend with each of its queries"
    )


def online_attention(q, k_blocks, v_blocks, scale):
    """Exercise 5.4: what `attend` computes, block by block, without ever holding all scores: softmax, online.

    For each head keep the highest score so far, the sum of exp(score - highest), and the sum of exp(score - highest) * v.
    When a block brings a higher score, first multiply both sums by exp(old highest - new highest). Use each block when it
    comes, and let it go: joined, K and V of a long text would not fit into a kernel.

    Args:
        q: [H, D].
        k_blocks, v_blocks: iterators over arrays [m, H, D], each block's tokens (m may differ, and is at least 1).
            They can be gone through only once, and together: a block of K, and then the block of V that belongs to it.
        scale: as above.

    Returns:
        [H, D], the same as attend(q, all k, all v, scale).
    """
    raise NotImplementedError(
        "Exercise 5.4: a running maximum, a running sum, a running weighted sum of v"
    )
