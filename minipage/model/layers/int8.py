"""Layers whose matrices take one byte a number: a quarter of what a step of few sequences has to read.

Each column of a matrix, which makes one number of the result, has a scale of its own, so that its largest number just
fits (127). The numbers become float32 again in the processor's registers, on their way into the product; x, norms,
biases and the tables that ids look up stay as they are.

    weight [in, out]   ≈   codes [in, out], int8   x   scales [out]         x @ weight   ≈   (x @ codes) x scales

Rounding moves a weight by at most half a step, scale / 2. On texts that the shipped model was trained for, perplexity
changes by less than 0.1 % (tests/model/test_int8.py). vLLM's option has the same name, `quantization`; what it does
with a checkpoint in "int8" differs from method to method, and usually rounds x, too.
"""

from __future__ import annotations

import numpy as np

from minipage.model.layers.compiled import CompiledLayers, Linear
from minipage.simd.arrays import Floats

LARGEST = np.float32(127)


class Int8Layers(CompiledLayers):
    """CompiledLayers with other panels."""

    def kept(self, weight: Floats, bias: Floats | None) -> Linear:
        return rounded(weight, bias)

    def kept_head(self, table: Floats) -> Linear:
        return rounded(table.T)


@np.errstate(invalid="ignore")  # infinities and NaN make their column's scale infinite or NaN, and so all its results
def rounded(weight: Floats, bias: Floats | None = None) -> Linear:
    """The layer of this weight [in, out] and bias [out], in int8."""
    largest = np.abs(weight).max(axis=0, initial=0)  # [out]
    return Linear(weight, bias, np.where(largest == 0, np.float32(1), largest / LARGEST))
