"""Lesson 14: your own model. Replace each `raise NotImplementedError(...)` by code of yours.

A Llama in place of a GPT-2. Block tables stay as they are; what lies in the blocks is turned by its position, has fewer
heads than the queries, and takes other numbers of bytes.

Shapes: T tokens, H heads of q, KH heads of K and V, D numbers in a head. What is handed in belongs to somebody else and
stays as it is.
"""

from __future__ import annotations

import numpy as np  # noqa: F401 (you will use it)


def rotate(x, positions, theta: float = 10_000.0):
    """Exercise 14.1: heads, turned by where their tokens stand (rotary position embedding).

    Number i of a head and number i + D / 2 are a pair, for i from 0 to D / 2 - 1: a point in a plane. It turns about the
    origin by the angle

        position * theta ** (-2 * i / D)        in radians, counterclockwise: from the first axis towards the second

    Args:
        x: [T, n, D], float32 or float64; D is even.
        positions: [T] integers from 0 on, where each token stands in its own text. They are in any order: the tokens
            of a batch come from several texts.

    Returns:
        [T, n, D], an array of its own.

    For x = [[[1, 0]]] and positions = [p] it is [[[cos(p), sin(p)]]]; for x = [[[0, 1]]] it is [[[-sin(p), cos(p)]]].
    """
    raise NotImplementedError(
        "Exercise 14.1: angles [T, 1, D / 2], both halves of each head, cosines and sines"
    )


def kv_head_of(head: int, num_heads: int, num_kv_heads: int) -> int:
    """Exercise 14.2: which head of K and V a head of q looks at.

    Heads of q share in runs: the first num_heads / num_kv_heads of them have head 0 of K and V, the next ones head 1,
    and so on. `num_kv_heads` divides `num_heads`.

    For 9 heads of q and 3 of K and V: 0 0 0 1 1 1 2 2 2.
    """
    raise NotImplementedError("Exercise 14.2: how many heads of q share one of K and V")


def grouped_attention(q, k_cache, v_cache, block_table, context_len: int):
    """Exercise 14.2: a decode step of one text with grouped queries, straight from its blocks.

    Args:
        q: [H, D], the query of the text's last token (turned already, if the model does that).
        k_cache, v_cache: [num_blocks, block_size, KH, D], as K and V lie in the cache.
        block_table: [max_blocks] integers, the text's blocks in order; behind those that `context_len` tokens fill
            there may be anything.
        context_len: tokens of the text in the cache, at least 1. Slots behind them may hold NaN.

    Returns:
        [H, D]: for each head of q the mean of its head of V, weighted with softmax(q · k / sqrt(D)).
    """
    raise NotImplementedError(
        "Exercise 14.2: gather the text's K and V, then each head of q with its head of K and V"
    )


def bytes_per_token(config: dict, dtype: str) -> int:
    """Exercise 14.3: the bytes that one token of a model takes in the KV cache, in all layers.

    Args:
        config: what is in the model's config.json, with the names that models of the Hugging Face hub use:
            `num_hidden_layers`, `num_attention_heads` and `hidden_size` are always there.
            Heads of K and V: `num_key_value_heads`, which Falcons call `num_kv_heads`. If neither is there, there are as
            many as of q. With `multi_query` true there is 1, whatever the others say; except if
            `new_decoder_architecture` is true as well: then `multi_query` means nothing.
            Numbers in a head: `head_dim`. If it is not there, or None: hidden_size / num_attention_heads.
        dtype: of the cache: "float32" (4 bytes a number), "bfloat16" or "float16" (2), "int8" or "fp8" (1, and each row,
            one head's K or V of a token, has a scale of 4 bytes besides).

    Llama-2-7B ({"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_size": 4096})
    takes 524288 in "float16", and 278528 in "int8".
    """
    raise NotImplementedError(
        "Exercise 14.3: how many rows a token has, and the bytes of each"
    )


def published_models() -> dict[str, tuple[int, int, int, int]]:
    """Exercise 14.4: a table to fill in, by hand or by code. (int, int, int, int) of each model, under its name here:

        heads of K and V, numbers in a head, bytes a token takes in 16 bits, whole blocks of 16 tokens in 8 GiB

    From their config.json on the Hugging Face hub (GiB = 2 ** 30 bytes; `-` where a file has no such line):

                         num_hidden_layers  hidden_size  num_attention_heads  num_key_value_heads
        OPT-13B                 40             5120              40                    -
        Llama-2-7B              32             4096              32                   32
        Falcon-7B               32             4544              71                    -   ("multi_query": true)
        Mistral-7B-v0.1         32             4096              32                    8
        Llama-3.1-8B            32             4096              32                    8
        Qwen2.5-7B              28             3584              28                    4
    """
    raise NotImplementedError(
        'Exercise 14.4: return {"OPT-13B": (40, 128, ..., ...), "Llama-2-7B": ...}'
    )


def move(k, by: int, theta: float = 10_000.0):
    """Exercise 14.5: K from a cache, turned already, as if its tokens stood elsewhere in the text.

    Args:
        k: [T, n, D] float32 or float64. Each token's heads were turned by its position; which that was is not known.
        by: how many places later all of them should stand; below 0: earlier.

    Returns:
        [T, n, D], an array of its own: what 14.1 would have given, had each token stood at its position + by.
    """
    raise NotImplementedError(
        "Exercise 14.5: a turn by a, and then one by b, is a turn by a + b"
    )
