"""The same GPT on NumPy arrays, with compiled code where NumPy is slow. What is computed, `gpt.py` says.

NumPy leaves a matrix product to its BLAS, which first copies both matrices into an order that suits it. For the few
rows of a decode that takes longer than the product itself, which has only to read the weights once:

    out[t, n] = x[t] . w[n]        four rows of x with four of w at a time: 16 sums in registers, 8 numbers read for
                                   16 products, and each weight comes from memory once

For this the weights lie in memory transposed, as [out, in]. Layer norm and GELU are ten NumPy operations each, all of
which read and write every number; here each is one pass. docs/performance.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np

from minipage.attention.arguments import Floats
from minipage.attention.cpu import compiled_parallel
from minipage.attention.vectors import exp
from minipage.model.gpt import GPT, GPTConfig


class CompiledGPT(GPT):
    """A GPT whose weights are NumPy arrays of float32."""

    def __init__(self, config: GPTConfig, weights: Mapping[str, Floats]) -> None:
        embeddings = "wte.weight", "wpe.weight", "lm_head.weight"
        transposed = {
            name: weight if name in embeddings else np.asfortranarray(weight)  # [in, out], in the order of [out, in]
            for name, weight in weights.items()
        }
        super().__init__(config, transposed)

    def logits(self, hidden: Floats) -> Floats:
        return product(hidden, self.weights.get("lm_head.weight", self.weights["wte.weight"]))  # [N, V]

    def _linear(self, name: str, x: Floats) -> Floats:
        out = product(x, self.weights[name + ".weight"].T)  # [T, out]
        out += self.weights[name + ".bias"]  # [T, out]
        return out

    def _layer_norm(self, name: str, x: Floats) -> Floats:
        out = np.empty_like(x)  # [T, C]
        _layer_norm(
            x, self.weights[name + ".weight"], self.weights[name + ".bias"], self.config.layer_norm_epsilon, out
        )
        return out

    def _gelu(self, x: Floats) -> Floats:
        _gelu(x)
        return x  # [T, 4C]


def product(x: Floats, w: Floats) -> Floats:
    """x [T, in], w [out, in] -> x @ w.T [T, out]."""
    if len(x) == 1:  # a matrix times a vector: here the BLAS copies nothing
        return x @ w.T  # [1, out]
    out = np.empty((len(x), len(w)), x.dtype)  # [T, out]
    _product(np.ascontiguousarray(x), np.ascontiguousarray(w), out)
    return out


@compiled_parallel
def _product(x, w, out):  # type: ignore[no-untyped-def]
    last_row, last_column = len(x) - 1, len(w) - 1
    for block in numba.prange(len(w) // 4 + 1):
        # At the edges the last one is simply computed several times.
        n0, n1, n2, n3 = (
            min(4 * block, last_column),
            min(4 * block + 1, last_column),
            min(4 * block + 2, last_column),
            min(4 * block + 3, last_column),
        )
        w0, w1, w2, w3 = w[n0], w[n1], w[n2], w[n3]  # [in] each
        for t0 in range(0, len(x), 4):
            t1, t2, t3 = min(t0 + 1, last_row), min(t0 + 2, last_row), min(t0 + 3, last_row)
            x0, x1, x2, x3 = x[t0], x[t1], x[t2], x[t3]  # [in] each
            s00 = s01 = s02 = s03 = np.float32(0)
            s10 = s11 = s12 = s13 = np.float32(0)
            s20 = s21 = s22 = s23 = np.float32(0)
            s30 = s31 = s32 = s33 = np.float32(0)
            for i in range(x.shape[1]):
                a, b, c, d = w0[i], w1[i], w2[i], w3[i]
                y = x0[i]
                s00, s01, s02, s03 = s00 + y * a, s01 + y * b, s02 + y * c, s03 + y * d
                y = x1[i]
                s10, s11, s12, s13 = s10 + y * a, s11 + y * b, s12 + y * c, s13 + y * d
                y = x2[i]
                s20, s21, s22, s23 = s20 + y * a, s21 + y * b, s22 + y * c, s23 + y * d
                y = x3[i]
                s30, s31, s32, s33 = s30 + y * a, s31 + y * b, s32 + y * c, s33 + y * d
            out[t0, n0], out[t0, n1], out[t0, n2], out[t0, n3] = s00, s01, s02, s03
            out[t1, n0], out[t1, n1], out[t1, n2], out[t1, n3] = s10, s11, s12, s13
            out[t2, n0], out[t2, n1], out[t2, n2], out[t2, n3] = s20, s21, s22, s23
            out[t3, n0], out[t3, n1], out[t3, n2], out[t3, n3] = s30, s31, s32, s33


@compiled_parallel
def _layer_norm(x, weight, bias, epsilon, out):  # type: ignore[no-untyped-def]
    size = np.float32(x.shape[1])
    for t in numba.prange(len(x)):
        row = x[t]  # [C]
        total = np.float32(0)
        for i in range(len(row)):
            total += row[i]
        mean, squares = total / size, np.float32(0)
        for i in range(len(row)):
            squares += (row[i] - mean) ** 2
        factor = np.float32(1 / math.sqrt(squares / size + epsilon))
        for i in range(len(row)):
            out[t, i] = (row[i] - mean) * factor * weight[i] + bias[i]


@compiled_parallel
def _gelu(x):  # type: ignore[no-untyped-def]
    """In place. 0.5 * (1 + tanh(u / 2)) is 1 / (1 + exp(-u)), which takes only an exponential."""
    for t in numba.prange(len(x)):
        row = x[t]  # [4C]
        for i in range(len(row)):
            v = row[i]
            u = np.float32(1.5957691216057308) * v * (np.float32(1) + np.float32(0.044715) * v * v)  # 2 sqrt(2 / pi)
            e = exp(-abs(u))
            row[i] = v * (np.float32(1) if u >= 0 else e) / (np.float32(1) + e)
