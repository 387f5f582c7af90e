"""Layers on NumPy arrays of float32, with compiled code where NumPy is slow.

NumPy leaves a matrix product to its BLAS, which first copies both matrices into an order that suits it. For the few
rows of a decode that takes longer than the product itself, which has only to read the weights once. So the weights are
kept in such an order from the beginning: in panels of 32 columns, each of them one straight line of memory.

    w [in, out]   ┌──┬──┬──┬──┐      panel 0   panel 1   ...        out[:, panel] = bias + x @ panel
                  │  │  │  │  │  ─▶  ▤▤▤▤▤▤▤▤  ▤▤▤▤▤▤▤▤             all rows of x, by any thread; then GELU,
                  └──┴──┴──┴──┘      [in, 32]  [in, 32]             while the numbers are still at hand

Each other operation is several in NumPy, all of which read and write every number; in passes.py it is one. To wake the
threads takes about 75 us each time, because they sleep in between: so only products wake them, and q, k and v are one.
A gate is part of its product, too: whoever multiplies by a panel of it does so by that of its factors, and puts both
together. docs/performance.md has the figures.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from minipage.errors import require
from minipage.model.architecture import Turn
from minipage.model.layers import passes
from minipage.model.layers.plain import PlainLayers
from minipage.simd.arrays import Floats, as_they_lie
from minipage.simd.matrix import ROW_PANELS, add_product, add_row_product
from minipage.simd.options import compiled, compiled_parallel
from minipage.simd.vectors import LANES, LINE, exp, fma, load, store

COLUMNS = 2 * LANES  # of a panel
ROWS = 256  # of x at a time, which stay in a processor's own cache while panel after panel goes by
ONE, HALF = np.float32(1), np.float32(0.5)
THEN = NOTHING, GELU, GELU_EXACT, RELU, GATED = range(5)
CODES: dict[str | None, int] = dict(zip((None, "gelu", "gelu_exact", "relu", "gated"), THEN))


class CompiledLayers(PlainLayers):
    """Layers whose weights are NumPy arrays of float32. Of matrices, only the panels are kept."""

    def check(self, name: str, weight: Floats | None, shape: tuple[int, ...]) -> None:
        require(
            weight is not None and weight.shape == shape and weight.dtype == np.float32,
            lambda: f"the weight {name} must be there, as {shape} of float32.",
        )

    def kept(self, weight: Floats, bias: Floats | None) -> Linear:
        return Linear(weight, bias)

    def kept_head(self, table: Floats) -> Linear:
        return Linear(table.T)

    def layer_norm(self, name: str, x: Floats, epsilon: float) -> Floats:
        weight, bias = self._parts[name]  # [C] each
        return passes.layer_norm(x, weight, bias, epsilon)  # [..., C]

    def rms_norm(self, name: str, x: Floats, epsilon: float) -> Floats:
        return passes.rms_norm(x, self._parts[name].weight, epsilon)  # [..., C]

    def gated(self, gate: Floats, up: Floats) -> Floats:
        return passes.gated(gate, up)  # [T, I]

    def gated_linear(self, names: tuple[str, ...], x: Floats) -> Floats:
        both: Linear = self._parts[names]
        return both(x, "gated") if both.can_gate else self.gated(*self.linears(names, x))  # [T, I]

    def rotate(self, x: Floats, turn: Turn) -> Floats:
        return passes.rotate(x, turn)  # [T, n, D]


class Linear:
    """x [T, in] -> x @ weight + bias [T, out], for a weight [in, out] that is kept in panels."""

    def __init__(self, weight: Floats, bias: Floats | None = None) -> None:
        bias = check_linear(weight, bias)  # [out]
        num_in, self.num_out = weight.shape
        num_panels = -(-self.num_out // COLUMNS)
        self.panels = zeros((num_panels, num_in, COLUMNS), np.float32)  # [num_panels, in, COLUMNS]
        for panel, start in zip(self.panels, range(0, self.num_out, COLUMNS)):  # no matrix is copied whole
            columns = weight[:, start : start + COLUMNS]  # [in, COLUMNS], or fewer at the end
            panel[:, : columns.shape[1]] = columns  # [in, COLUMNS]; what is left are zeros
        self.bias = np.pad(bias, (0, num_panels * COLUMNS - self.num_out))  # [num_panels * COLUMNS]
        self.of_a_row, self.can_add, self.can_gate = how_to_multiply(self.num_out)

    def __call__(self, x: Any, then: str | None = None, onto: Any = None) -> Any:
        if onto is None or self.can_add:
            return self.product(x, then, onto)  # [T, out]
        return onto + self.product(x, then, None)  # [T, out]

    def product(self, x: Floats, then: str | None, onto: Floats | None) -> Floats:
        check_rows(x, self.panels.shape[1])
        return self.multiply(as_they_lie(x), then, onto, x.dtype)  # [T, out]

    def multiply(self, x: Any, then: str | None, onto: Floats | None, dtype: npt.DTypeLike) -> Floats:
        out = np.empty((len(x), len(self.bias) // (2 if then == "gated" else 1)), dtype)  # [T, width of whole panels]
        added = out if onto is None else as_they_lie(onto)  # [T, width]
        together = self.of_a_row if len(x) == 1 else 1
        for start in range(0, len(x), ROWS):
            some = slice(start, start + ROWS)
            _linear(x[some], self.panels, self.bias, CODES[then], together, onto is not None, added[some], out[some])
        return out[:, : self.num_out]  # [T, out]


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """[...] that begins where a line of memory does: or the processor would fetch two lines for each vector."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(num_bytes + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + num_bytes].view(dtype).reshape(shape)  # [...]


def how_to_multiply(num_out: int) -> tuple[int, bool, bool]:
    """How many panels at once for a single row, so that there are still some for each thread; whether these are whole
    panels, to which something is added as they lie; and whether each half of them is, as a gate wants it."""
    has_many = num_out >= ROW_PANELS * COLUMNS * numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    return ROW_PANELS if has_many else 1, num_out % COLUMNS == 0, num_out % (2 * COLUMNS) == 0


def check_linear(weight: Floats, bias: Floats | None) -> Floats:
    """The bias [out] of a layer, zeros if there is none; KernelArgumentError if the two do not fit together."""
    bias = np.zeros(weight.shape[-1], np.float32) if bias is None else bias  # [out]
    require(
        weight.ndim == 2 and bias.shape == weight.shape[1:] and weight.dtype == bias.dtype == np.float32,
        lambda: f"{weight.shape} {weight.dtype} and {bias.shape} {bias.dtype} must be [in, out] and [out] of float32.",
    )
    return bias


def check_rows(x: Floats, num_in: int) -> None:
    require(
        x.ndim == 2 and x.shape[1] == num_in and x.dtype == np.float32,
        lambda: f"x is {x.shape} of {x.dtype}; it must be [T, {num_in}] of float32.",
    )


@compiled_parallel
def _linear(x, panels, bias, then, together, is_added, added, out):  # type: ignore[no-untyped-def]
    num_panels = out.shape[1] // COLUMNS  # those of a gate are the first half of all, the others are its factors
    for group in numba.prange((num_panels + together - 1) // together):
        first = int(group) * together
        count = min(together, num_panels - first)
        sums = np.empty((len(panels) // num_panels, len(x), count * COLUMNS), np.float32)  # [1 or 2, T, columns]
        for part in range(len(sums)):
            p = part * num_panels + first
            for t in range(len(x)):
                for d in range(0, count * COLUMNS, LANES):
                    store(sums, (part, t, d), load(bias, (p * COLUMNS + d,)))
            if together == ROW_PANELS:
                add_row_product(x[0], panels[p : p + count], sums[part].reshape(count, COLUMNS))
            else:
                coming = p + num_panels if part + 1 < len(sums) else min(first + 1, num_panels - 1)
                add_product(x, panels[p], 0, len(x), sums[part], panels[coming])
        finish(sums, then, is_added, added, out, first * COLUMNS)


@compiled
def finish(sums, then, is_added, added, out, start):  # type: ignore[no-untyped-def]
    """What becomes of the sums of some columns, [1, or with those of a gate 2, T, n]: out[:, start : start + n]."""
    numbers = sums.reshape(len(sums), sums[0].size)  # [1 or 2, T * n], side by side: the compiler makes vectors of them
    if then == GELU:
        gelu(numbers[0])
    elif then == GELU_EXACT:
        gelu_exact(numbers[0])
    elif then == RELU:
        for i in range(numbers.shape[1]):
            numbers[0, i] = np.float32(0) if numbers[0, i] < 0 else numbers[0, i]  # NaN stays NaN
    elif then == GATED:
        passes.gate_in_place(numbers[0], numbers[1], out)
    for t in range(sums.shape[1]):
        for d in range(0, sums.shape[2], LANES):
            result = load(sums, (0, t, d))
            if is_added:
                result = fma(result, ONE, load(added, (t, start + d)))
            store(out, (t, start + d), result)


@compiled
def gelu(x):  # type: ignore[no-untyped-def]
    """In place. 0.5 * (1 + tanh(u / 2)) is 1 / (1 + exp(-u)), which takes only an exponential."""
    for i in range(len(x)):
        v = x[i]
        u = np.float32(1.5957691216057308) * v * (np.float32(1) + np.float32(0.044715) * v * v)  # 2 sqrt(2 / pi)
        e = exp(-abs(u))
        x[i] = v * (np.float32(1) if u >= 0 else e) / (np.float32(1) + e)


@compiled
def gelu_exact(x):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        x[i] = HALF * x[i] * (ONE + np.float32(math.erf(x[i] * np.float32(math.sqrt(0.5)))))
