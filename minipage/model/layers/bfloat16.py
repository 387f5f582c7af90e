"""Layers in bfloat16 on a CPU, whose matrices lie in panels as those of float32 do: half the bytes, twice the products.

Two rows of a matrix, and two numbers of x, make one int32 (simd/bfloat16.py). Sums are made in float32, and what comes
out is rounded once, after bias, function and `onto`. As a panel is multiplied, the next one comes from memory: for the
few rows of a decode oneDNN takes as long as reading and computing one after the other.
"""

from __future__ import annotations

import numpy as np

from minipage.model.architecture import Array
from minipage.model.layers.compiled import COLUMNS, Linear, how_to_multiply, zeros
from minipage.model.layers.onednn import OneDNNLayers, bits, tensor
from minipage.simd.arrays import as_they_lie
from minipage.simd.bfloat16 import has_instruction, has_tiles
from minipage.simd.halves import from_bfloat16


def able() -> bool:
    """Whether this is faster here than oneDNN."""
    return has_instruction() and not has_tiles()


class BFloat16Layers(OneDNNLayers):
    """OneDNNLayers with panels instead of oneDNN's matrices."""

    def kept(self, weight: Array, bias: Array | None) -> PairedLinear:
        return PairedLinear(weight.T, bias)

    def kept_head(self, table: Array) -> PairedLinear:
        return PairedLinear(table, None)

    def gated_linear(self, names: tuple[str, ...], x: Array) -> Array:
        both: PairedLinear = self._parts[names]
        return both(x, "gated") if both.can_gate else super().gated_linear(names, x)  # [T, I]


class PairedLinear(Linear):
    """x [T, in] -> x @ weight.T + bias [T, out], for a weight [out, in]."""

    def __init__(self, weight: Array, bias: Array | None) -> None:
        self.num_out, num_in = weight.shape
        num_panels, num_pairs = -(-self.num_out // COLUMNS), -(-num_in // 2)
        panels = zeros((num_panels, num_pairs, COLUMNS, 2), np.uint16)  # [num_panels, pairs, COLUMNS, 2]
        for panel, start in zip(panels, range(0, self.num_out, COLUMNS)):
            columns = bits(weight[start : start + COLUMNS])  # [COLUMNS, in], or fewer at the end
            for i in (0, 1):
                some = columns[:, i::2].T  # [pairs, COLUMNS], or one less
                panel[: len(some), : some.shape[1], i] = some  # [pairs, COLUMNS]; what is left are zeros
        self.panels = panels.view(np.int32)[..., 0]  # [num_panels, pairs, COLUMNS]
        self.bias = np.zeros(num_panels * COLUMNS, np.float32)  # [num_panels * COLUMNS]
        if bias is not None:
            self.bias[: self.num_out] = from_bfloat16(bits(bias))  # [out]
        self.of_a_row, self.can_add, self.can_gate = how_to_multiply(self.num_out)

    def product(self, x: Array, then: str | None, onto: Array | None) -> Array:
        x = bits(x)  # [T, in]
        x = np.pad(x, ((0, 0), (0, 1))) if x.shape[1] % 2 else as_they_lie(x)  # [T, in or one more]
        onto = None if onto is None else bits(onto)  # [T, out]
        return tensor(self.multiply(x.view(np.int32), then, onto, np.uint16))  # [T, out]
