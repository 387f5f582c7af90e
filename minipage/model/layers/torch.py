"""Layers on PyTorch tensors, with PyTorch's own operation where it has one for several of ours.

A layer norm is eight array operations in `plain.py`, each of which reads and writes all numbers; PyTorch has it as one,
which also computes in float32 when the numbers are bfloat16. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch.nn.functional import embedding, gelu, layer_norm, pad, relu, rms_norm, silu

from minipage.model.architecture import Activation, Architecture, Array
from minipage.model.layers.plain import Part, PlainLayers

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": lambda x: gelu(x, approximate="tanh"),
    "gelu_exact": gelu,
    "relu": relu,
}


class TorchLayers(PlainLayers):
    """Layers whose weights are PyTorch tensors."""

    def __init__(self, architecture: Architecture, weights: Mapping[str, Array] | Iterable[tuple[str, Array]]) -> None:
        super().__init__(architecture, weights)
        for name, head in self._heads.items():
            if isinstance(head, Head) and name in self._parts:
                self._parts[name] = Part(head.table, None)  # of one memory with the head, and no id names the padding

    def _joined(self, arrays: list[Array]) -> Array:
        """Side by side; on a GPU, matrices lie as [out, in]: a number of the result is the product with a row."""
        if not arrays[0].is_cuda or arrays[0].ndim == 1:
            return super()._joined(arrays)  # [..., out of all]
        return torch.cat([array.T for array in arrays]).T  # [in, out of all]

    def kept(self, weight: Array, bias: Array | None) -> Callable[..., Array]:
        return Linear(weight, bias)

    def kept_head(self, table: Array) -> Callable[[Array], Array]:
        return Head(table)

    def embed(self, name: str, ids: Array) -> Array:
        return embedding(ids, self._parts[name].weight)  # [T] -> [T, C]; several times faster than index_select

    def linears(self, names: tuple[str, ...], x: Array) -> tuple[Array, ...]:
        x = self._parts[names](x)  # [T, in] -> [T, out of all]
        return tuple(torch.split_with_sizes(x, self._widths[names], 1))  # each [T, out]; quicker than split

    def layer_norm(self, name: str, x: Array, epsilon: float) -> Array:
        weight, bias = self._parts[name]  # [C] each
        return layer_norm(x, weight.shape, weight, bias, epsilon)  # [..., C]

    def rms_norm(self, name: str, x: Array, epsilon: float) -> Array:
        weight = self._parts[name].weight  # [C]
        return rms_norm(x, weight.shape, weight, epsilon)  # [..., C]

    def gated(self, gate: Array, up: Array) -> Array:
        return silu(gate) * up  # [T, I]


class Linear:
    """x [T, in] -> x @ weight + bias [T, out]."""

    def __init__(self, weight: Array, bias: Array | None) -> None:
        self.weight = weight  # [in, out]
        self.bias = bias  # [out]

    def __call__(self, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        if onto is not None and then is None and self.bias is None:
            return onto.addmm_(x, self.weight)  # [T, out]; one operation, while two would go through it again
        x = x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)  # [T, in] -> [T, out]
        x = x if then is None else ACTIVATIONS[then](x)  # [T, out]
        return x if onto is None else onto + x  # [T, out]


class Head:
    """Hidden states [N, C] -> their products with all rows of a table, [N, V].

    GPUs multiply faster by matrices whose rows are a multiple of some power of two, so there it is padded.
    """

    def __init__(self, table: Array) -> None:
        self.num_words = len(table)
        self.table = pad(table, (0, 0, 0, -len(table) % 64)) if table.is_cuda else table  # [V and up to 63, C]

    def __call__(self, hidden: Array) -> Array:
        return (hidden @ self.table.T)[:, : self.num_words]  # [N, C] -> [N, V]
