"""Layers whose matrices take one byte a number: a quarter of what a step of few sequences has to read.

Each column of a matrix, which makes one number of the result, has a scale of its own, so that its largest number just
fits (127). The rows of x are rounded, too, but to 16 bits, so that its largest number is 32,767: a processor multiplies
such whole numbers, and adds two products, in the time that one product of float32 takes (simd/pairs.py).

    weight [in, out]   ≈   codes [in, out], int8    x   scales [out]
    x      [T, in]     ≈   codes [T, in],   int16   x   scales [T]          x @ weight   ≈   (codes @ codes) x scales

A rank of tensor parallelism that has some rows of a matrix rounds by the largest numbers of whole columns, so that all
ranks together have the codes of one process. Of x, each rank rounds the columns that it has by the largest of these,
which is finer: two ranks move a logit of the shipped model by up to 7e-4, where int8 itself moves one by up to 0.1.

Rounding moves a number by at most half a step, scale / 2. On texts that the shipped model was trained for, perplexity
changes by less than 0.1 % (tests/model/test_int8.py). Norms, biases and the tables that ids look up stay as they are.
vLLM's option has the same name, `quantization`; what it does with a checkpoint in "int8" differs from method to method,
and usually rounds x to 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numba
import numpy as np

from minipage.model.layers.compiled import (
    CODES,
    COLUMNS,
    ROWS,
    CompiledLayers,
    Linear,
    check_linear,
    check_rows,
    finish,
    how_to_multiply,
    zeros,
)
from minipage.simd.arrays import Floats, as_they_lie
from minipage.simd.options import compiled_parallel
from minipage.simd.pairs import add_whole_product, round_rows
from minipage.simd.vectors import LANES, fma, load, product, store

LARGEST = np.float32(127)
Largest: TypeAlias = dict[str, Floats]  # of a matrix, by name: its columns' largest numbers, [out]


class Int8Layers(CompiledLayers):
    """CompiledLayers with other panels.

    Args:
        largest: of those matrices, as soon as they come, that other ranks have more rows of.
    """

    def __init__(
        self, architecture: Any, weights: Iterable[tuple[str, Floats]], largest: Largest | None = None
    ) -> None:
        self._largest = {} if largest is None else largest
        super().__init__(architecture, weights)

    def _keep(self, names: tuple[str, ...], *given: Any) -> None:
        self._coming = self._largest.pop(f"{names[0]}.weight", None)
        super()._keep(names, *given)

    def kept(self, weight: Floats, bias: Floats | None) -> RoundedLinear:
        return RoundedLinear(weight, bias, self._coming)

    def kept_head(self, table: Floats) -> RoundedLinear:
        return RoundedLinear(table.T)


def largest_of(weight: Floats) -> Floats:
    """Each column's largest number, without its sign: [in, out] -> [out]."""
    largest: Floats = np.maximum(weight.max(axis=0, initial=0), -weight.min(axis=0, initial=0))  # [out]
    return largest


class RoundedLinear(Linear):
    """x [T, in] -> x @ weight + bias [T, out], for a weight [in, out] of which int8 are kept, in panels."""

    @np.errstate(invalid="ignore")  # infinities and NaN make their column's scale infinite or NaN, and so all results
    def __init__(self, weight: Floats, bias: Floats | None = None, largest: Floats | None = None) -> None:
        bias = check_linear(weight, bias)  # [out]
        self.num_in, self.num_out = weight.shape
        largest = largest_of(weight) if largest is None else largest  # [out]
        scales = np.where(largest == 0, np.float32(1), largest / LARGEST)  # [out]
        num_panels, num_pairs = -(-self.num_out // COLUMNS), -(-self.num_in // 2)
        self.panels = zeros((num_panels, num_pairs, COLUMNS, 2), np.int8)  # [num_panels, pairs, COLUMNS, 2]
        for panel, start in zip(self.panels, range(0, self.num_out, COLUMNS)):  # no matrix is copied whole
            some = slice(start, start + COLUMNS)
            codes = np.rint(weight[:, some] / scales[some])  # [in, COLUMNS], or fewer at the end
            for i in (0, 1):
                panel[: len(codes[i::2]), : codes.shape[1], i] = codes[i::2]  # what is left are zeros
        self.panels = self.panels.reshape(num_panels, num_pairs, 2 * COLUMNS)  # [num_panels, pairs, 2 * COLUMNS]
        padding = 0, num_panels * COLUMNS - self.num_out
        _, self.can_add, self.can_gate = how_to_multiply(self.num_out)
        self.scales, self.bias = np.pad(scales, padding), np.pad(bias, padding)  # each [num_panels * COLUMNS]

    def product(self, x: Floats, then: str | None, onto: Floats | None) -> Floats:
        check_rows(x, self.num_in)
        out = np.empty((len(x), len(self.bias) // (2 if then == "gated" else 1)), x.dtype)  # [T, width]
        added = out if onto is None else as_they_lie(onto)  # [T, width]
        for start in range(0, len(x), ROWS):
            some = slice(start, start + ROWS)
            rows = as_they_lie(x[some])  # [some, in]
            codes, scales = np.empty((len(rows), 2 * self.panels.shape[1]), np.int16), np.empty(len(rows), np.float32)
            round_rows(rows, rows.view(np.int32), codes, scales)
            weights = self.panels, self.scales, self.bias
            _linear(codes.view(np.int32), scales, *weights, CODES[then], onto is not None, added[some], out[some])
        return out[:, : self.num_out]  # [T, out]


@compiled_parallel
def _linear(pairs, row_scales, panels, scales, bias, then, is_added, added, out):  # type: ignore[no-untyped-def]
    num_panels = out.shape[1] // COLUMNS  # those of a gate are the first half of all, the others are its factors
    for first in numba.prange(num_panels):
        sums = np.zeros((len(panels) // num_panels, len(out), COLUMNS), np.float32)  # [1 or 2, T, COLUMNS]
        for part in range(len(sums)):
            p = part * num_panels + first
            coming = p + num_panels if part + 1 < len(sums) else min(first + 1, num_panels - 1)
            add_whole_product(pairs, panels[p], sums[part], panels[coming])
            for t in range(len(out)):
                for d in range(0, COLUMNS, LANES):
                    scale = product(load(scales, (p * COLUMNS + d,)), row_scales[t])
                    store(sums, (part, t, d), fma(load(bias, (p * COLUMNS + d,)), scale, load(sums, (part, t, d))))
        finish(sums, then, is_added, added, out, first * COLUMNS)
