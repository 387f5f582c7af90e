"""Layers on PyTorch tensors of bfloat16 on a CPU. Matrices are kept in the order that its instructions want.

PyTorch leaves such products to oneDNN, which puts a matrix into that order each time, and for the few rows of a decode
that takes longer than the product. PyTorch's compiler does it once and for all, with the operations that are used here;
they are not part of its documented interface, so `able` asks for them.

What is no product goes through the compiled passes of float32: they read and write the tensors' memory as the bits of
bfloat16. For a few rows PyTorch takes longer to call its operations, several for each of these, than to compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from minipage.model.architecture import Activation, Array, Turn
from minipage.model.layers import passes
from minipage.model.layers.torch import TorchLayers
from minipage.simd.arrays import Floats

THEN: dict[Activation | None, tuple[str, str]] = {
    None: ("none", ""),
    "gelu": ("gelu", "tanh"),
    "gelu_exact": ("gelu", "none"),
    "relu": ("relu", ""),
}


def able() -> bool:
    operations = torch.ops.mkldnn
    names = "_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"
    return all(hasattr(operations, name) for name in names) and operations._is_mkldnn_bf16_supported()


class OneDNNLayers(TorchLayers):
    """Layers in bfloat16 on a CPU. Matrices are kept in oneDNN's order only."""

    def kept(self, weight: Array, bias: Array | None) -> Callable[..., Array]:
        return Linear(weight.T, bias)

    def kept_head(self, table: Array) -> Callable[[Array], Array]:
        return Linear(table, None)

    def layer_norm(self, name: str, x: Array, epsilon: float) -> Array:
        weight, bias = self._parts[name]  # [C] each
        return tensor(passes.layer_norm(bits(x), bits(weight), None if bias is None else bits(bias), epsilon))

    def rms_norm(self, name: str, x: Array, epsilon: float) -> Array:
        return tensor(passes.rms_norm(bits(x), bits(self._parts[name].weight), epsilon))  # [..., C]

    def gated(self, gate: Array, up: Array) -> Array:
        return tensor(passes.gated(bits(gate), bits(up)))  # [T, I]

    def rotation(self, positions: Array, frequencies: Sequence[float], magnitude: float = 1.0) -> Turn:
        cosines, sines = super().rotation(positions, frequencies, magnitude)  # each [T, 1, R / 2]
        return bits(cosines), bits(sines)  # here, and not in each layer

    def rotate(self, x: Array, turn: Turn) -> Array:
        return tensor(passes.rotate(bits(x), turn))  # [T, n, D]


def bits(numbers: Array) -> Floats:
    """[...] of bfloat16 -> the same memory as NumPy knows it, [...] of uint16."""
    array: Floats = numbers.view(torch.uint16).numpy()
    return array


def tensor(bits: Floats) -> Array:
    """[...] of uint16 -> the same memory as bfloat16, [...]."""
    return torch.from_numpy(bits).view(torch.bfloat16)


class Linear:
    """x [T, in] -> x @ weight.T + bias [T, out], for a weight [out, in]."""

    def __init__(self, weight: Array, bias: Array | None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = bias  # [out]

    def __call__(self, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        activation, form = THEN[then]
        x = torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.packed, self.bias, activation, [], form)
        return x if onto is None else onto + x  # [T, out]
