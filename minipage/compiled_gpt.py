"""The same GPT on NumPy arrays, with compiled code where NumPy is slow. What is computed, `gpt.py` says.

NumPy leaves a matrix product to its BLAS, which first copies both matrices into an order that suits it. For the few
rows of a decode that takes longer than the product itself, which has only to read the weights once. So the weights are
kept in such an order from the beginning: in panels of 32 columns, each of them one straight line of memory.

    w [in, out]   ┌──┬──┬──┬──┐      panel 0   panel 1   ...        out[:, panel] = bias + x @ panel
                  │  │  │  │  │  ─▶  ▤▤▤▤▤▤▤▤  ▤▤▤▤▤▤▤▤             all rows of x, by any thread; then GELU,
                  └──┴──┴──┴──┘      [in, 32]  [in, 32]             while the numbers are still at hand

Layer norm and GELU are ten NumPy operations each, all of which read and write every number; here each is one pass.
Each time the threads are set to work costs some 75 us, for they sleep in between: so only products wake them.
docs/performance.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numba
import numpy as np

from minipage.errors import require
from minipage.model.gpt import GPT, GPTConfig
from minipage.model.packed import PackedWeights
from minipage.simd.arrays import Floats, as_they_lie
from minipage.simd.matrix import add_product
from minipage.simd.options import compiled, compiled_parallel
from minipage.simd.vectors import LANES, exp

COLUMNS = 2 * LANES  # of a panel


class CompiledGPT(GPT):
    """A GPT whose weights are NumPy arrays of float32. Its matrices are only kept in panels."""

    def __init__(self, config: GPTConfig, weights: Mapping[str, Floats]) -> None:
        for name, shape in config.weight_shapes().items():
            require(
                name in weights and weights[name].shape == shape and weights[name].dtype == np.float32,
                f"the weight {name} must be there, as {shape} of float32.",
            )
        head = weights.get("lm_head.weight", weights["wte.weight"])  # [V, C]
        self._head = Linear(head.T, np.zeros(len(head), head.dtype))
        matrices = [name for name in weights if name.startswith("h.") and weights[name].ndim == 2]
        self._linears = {
            name: Linear(weights[name + ".weight"], weights[name + ".bias"])
            for name in (matrix.removesuffix(".weight") for matrix in matrices)
        }
        unpack = {f"{name}.weight": linear.weight for name, linear in self._linears.items()}
        if "lm_head.weight" in weights:
            unpack["lm_head.weight"] = lambda: self._head.weight().T
        super().__init__(config, PackedWeights(weights, unpack))

    def logits(self, hidden: Floats) -> Floats:
        return self._head(hidden)  # [N, V]

    def _linear(self, name: str, x: Floats) -> Floats:
        return self._linears[name](x)  # [T, out]

    def _mlp(self, name: str, x: Floats) -> Floats:
        x = self._linears[name + ".c_fc"](x, with_gelu=True)  # [T, 4C]
        return self._linear(name + ".c_proj", x)  # [T, C]

    def _layer_norm(self, name: str, x: Floats) -> Floats:
        out = np.empty_like(x)  # [T, C]
        _layer_norm(
            x, self.weights[name + ".weight"], self.weights[name + ".bias"], self.config.layer_norm_epsilon, out
        )
        return out


class Linear:
    """x [T, in] -> x @ weight + bias [T, out], for a weight [in, out] that is kept in panels."""

    def __init__(self, weight: Floats, bias: Floats) -> None:
        require(
            weight.ndim == 2 and bias.shape == weight.shape[1:] and weight.dtype == bias.dtype == np.float32,
            lambda: (
                f"the weight is {weight.shape} of {weight.dtype} and the bias {bias.shape} of {bias.dtype}; they must "
                "be [in, out] and [out], of float32."
            ),
        )
        num_in, self.num_out = weight.shape
        num_panels = -(-self.num_out // COLUMNS)
        padding = 0, num_panels * COLUMNS - self.num_out  # columns of zeros
        columns = np.pad(weight, ((0, 0), padding)).reshape(num_in, num_panels, COLUMNS)  # [in, num_panels, COLUMNS]
        self.panels = np.ascontiguousarray(columns.transpose(1, 0, 2))  # [num_panels, in, COLUMNS]
        self.bias = np.pad(bias, padding)  # [num_panels * COLUMNS]

    def weight(self) -> Floats:
        columns = self.panels.transpose(1, 0, 2)  # [in, num_panels, COLUMNS]
        return columns.reshape(len(columns), -1)[:, : self.num_out]  # [in, out]

    def __call__(self, x: Floats, with_gelu: bool = False) -> Floats:
        num_in = self.panels.shape[1]
        require(
            x.ndim == 2 and x.shape[1] == num_in and x.dtype == np.float32,
            lambda: f"x is {x.shape} of {x.dtype}; it must be [T, {num_in}] of float32.",
        )
        out = np.empty((len(x), len(self.bias)), x.dtype)  # [T, num_panels * COLUMNS]
        _linear(as_they_lie(x), self.panels, self.bias, with_gelu, out)
        return out[:, : self.num_out]  # [T, out]


@compiled_parallel
def _linear(x, panels, bias, with_gelu, out):  # type: ignore[no-untyped-def]
    for p in numba.prange(len(panels)):
        start = p * COLUMNS
        columns = out[:, start : start + COLUMNS]  # [T, COLUMNS]
        for t in range(len(x)):
            for j in range(COLUMNS):
                columns[t, j] = bias[start + j]
        add_product(x, panels[p], 0, len(x), columns, panels[min(int(p) + 1, len(panels) - 1)])
        if with_gelu:
            gelu(columns)


@compiled
def gelu(x):  # type: ignore[no-untyped-def]
    """In place. 0.5 * (1 + tanh(u / 2)) is 1 / (1 + exp(-u)), which takes only an exponential."""
    for t in range(len(x)):
        row = x[t]  # [n]
        for i in range(len(row)):
            v = row[i]
            u = np.float32(1.5957691216057308) * v * (np.float32(1) + np.float32(0.044715) * v * v)  # 2 sqrt(2 / pi)
            e = exp(-abs(u))
            row[i] = v * (np.float32(1) if u >= 0 else e) / (np.float32(1) + e)


@compiled
def _layer_norm(x, weight, bias, epsilon, out):  # type: ignore[no-untyped-def]
    size = np.float32(x.shape[1])
    for t in range(len(x)):
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
