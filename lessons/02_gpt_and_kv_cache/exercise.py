"""Lesson 2: a GPT and its KV cache. Replace each `raise NotImplementedError(...)` by code of yours.

A token attends to itself and to all tokens before it. So when the next token comes, K and V of the old ones are needed
again, but they never change: keep them, and compute only what is new. That is a KV cache. (No pages yet: one piece.)

Shapes: T tokens, H heads, D = head_size. Arrays come in float32; what you return is an array of float32 or float64, as
you like. What is handed in belongs to somebody else: read it, and do not write into it. The real GPT of minipage calls
your attention: see 2.2 and 2.3.
"""

from __future__ import annotations

import numpy as np


def causal_attention(q, k, v):
    """Exercise 2.1: attention of the last tokens of a text to all of it.

    Args:
        q: [n, H, D], the queries of the last n of T tokens (all of them if n = T); n is at least 1.
        k, v: [T, H, D].

    Returns:
        [n, H, D]: for each query and head, the mean of v weighted with softmax(q · k / sqrt(D)). The query of token i
        sees tokens 0 to i, and none after it; query 0 is token T - n. Scores may be thousands, of either sign, and of
        each query and head others: softmax does not change if its own highest score is taken off first, and np.exp of
        what is left is at most 1.
    """
    raise NotImplementedError(
        "Exercise 2.1: scores, a mask, softmax, the weighted mean of v"
    )


class CachedAttention:
    """The attention of a GPT that keeps K and V: `model.forward(token_ids, positions, CachedAttention())`."""

    def __init__(self) -> None:
        self.k: dict[
            int, np.ndarray
        ] = {}  # layer -> K of all tokens so far, [tokens, H, D]
        self.v: dict[
            int, np.ndarray
        ] = {}  # layer -> V of all tokens so far, [tokens, H, D]

    def __call__(self, layer: int, q, k, v):
        """Exercise 2.2: called once per layer with q, k, v of the new tokens, each [n, H, D]; returns [n, H, D].

        Add k and v to what is kept of this layer (np.concatenate), and let the new tokens attend to all of it. Each
        CachedAttention is one text. Layers have any numbers, and come in any order.
        """
        raise NotImplementedError(
            "Exercise 2.2: keep k and v of this layer, then causal_attention"
        )


def generate(model, prompt: list[int], num_tokens: int) -> list[int]:
    """Exercise 2.3: go on with a prompt, `num_tokens` tokens, always the most likely one (greedy).

    `model.forward(token_ids, positions, attend)` takes two integer arrays [n] and returns hidden states [n, C];
    `model.logits(hidden)` turns [1, C] into [1, vocab_size]. Positions count from 0 in the text.

    First all of the prompt in one call, then each new token by itself: with a CachedAttention nothing is computed twice.

    Returns:
        A list of the new tokens (whole numbers), without the prompt. Of the last one no K and V are ever needed, so it is
        never put in; and for `num_tokens` 0 nothing is computed.
    """
    raise NotImplementedError("Exercise 2.3: the prompt once, then one token at a time")
