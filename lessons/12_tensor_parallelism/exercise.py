"""Lesson 12: tensor parallelism. Replace each `raise NotImplementedError(...)` by code of yours.

`size` processes (ranks 0 to size - 1) share one model. Each has a part of every weight, computes with it, and once after
attention and once after the MLP they add up what they have: an all-reduce.

    MLP    x ─▶ [ W1, columns of rank ] ─▶ gelu ─▶ [ W2, rows of rank ] ─▶ a part of the sum ─▶ all-reduce ─▶ y

Weights are stored (in, out), as in the published GPT-2: y = x @ weight + bias. `size` divides what is split. What is
handed in belongs to somebody else and stays as it is; parts of weights may be views of it.
"""

from __future__ import annotations

import numpy as np  # noqa: F401 (you will use it)


def split_columns(weight, bias, rank: int, size: int):
    """Exercise 12.1: the part of a layer that computes a part of the outputs.

    Args:
        weight: [in, out]; bias: [out].

    Returns:
        (weight [in, out / size], bias [out / size]) of this rank: the outputs of all ranks, one after the other, are the
        outputs of the whole layer.
    """
    raise NotImplementedError(
        "Exercise 12.1: this rank's slice of the columns, and of the bias"
    )


def split_rows(weight, bias, rank: int, size: int):
    """Exercise 12.2: the part of a layer that takes a part of the inputs.

    Returns:
        (weight [in / size, out], bias [out]) of this rank: what all ranks compute from their parts of the input adds up
        to the output of the whole layer. So the bias must be added once only: rank 0 has it, the others have zeros.
    """
    raise NotImplementedError(
        "Exercise 12.2: this rank's slice of the rows; the bias only once"
    )


def split_heads(weight, bias, num_heads: int, rank: int, size: int):
    """Exercise 12.3: the part of the layer that makes q, k and v of this rank's heads.

    Args:
        weight: [C, 3 * C]; bias: [3 * C]. The outputs are q of all heads, then k of all heads, then v of all heads.

    Returns:
        (weight [C, 3 * C / size], bias [3 * C / size]): q, k and v of heads rank * num_heads / size and following.
    """
    raise NotImplementedError(
        "Exercise 12.3: a slice of q, of k and of v, not of all three at once"
    )


def all_reduce(parts):
    """Exercise 12.4: what each rank has after an all-reduce: the sum of all parts.

    Args:
        parts: a list of `size` arrays of one shape, one of each rank; of one dimension or more.

    Returns:
        A list of `size` arrays of that shape with the sum, each an array of its own; `parts` stay as they are.
    """
    raise NotImplementedError(
        "Exercise 12.4: add all of them up, and give each rank a copy"
    )
