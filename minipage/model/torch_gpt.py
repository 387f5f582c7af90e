"""The same GPT with PyTorch's own operation where it has one for several of ours.

A layer norm is eight array operations in `gpt.py`, each of which reads and writes all numbers; PyTorch has it as one,
which also computes in float32 when the numbers are bfloat16. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch.nn.functional import gelu, layer_norm, pad

from minipage.model.gpt import GPT, Array, GPTConfig
from minipage.model.packed import PackedWeights


class TorchGPT(GPT):
    """A GPT whose weights are PyTorch tensors."""

    def __init__(self, config: GPTConfig, weights: Mapping[str, Array]) -> None:
        head = "lm_head.weight" if "lm_head.weight" in weights else "wte.weight"
        self._head = weights[head]  # [V, C]
        if self._head.is_cuda:  # GPUs multiply faster by matrices whose rows are a multiple of some power of two
            self._head = pad(self._head, (0, 0, 0, -config.vocab_size % 64))  # [V and up to 63 rows of zeros, C]
            weights = {**weights, head: self._head[: config.vocab_size]}  # the same memory
        super().__init__(config, weights)

    def logits(self, hidden: Array) -> Array:
        return (hidden @ self._head.T)[:, : self.config.vocab_size]  # [N, V]

    def _linear(self, name: str, x: Array) -> Array:
        return torch.addmm(self.weights[name + ".bias"], x, self.weights[name + ".weight"])  # [T, in] -> [T, out]

    def _mlp(self, name: str, x: Array) -> Array:
        x = gelu(self._linear(name + ".c_fc", x), approximate="tanh")  # [T, 4C]
        return self._linear(name + ".c_proj", x)  # [T, C]

    def _layer_norm(self, name: str, x: Array) -> Array:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]  # [C] each
        return layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_epsilon)  # [T, C]


class PackedTorchGPT(TorchGPT):
    """A GPT in bfloat16 on a CPU. Its matrices are only kept in the order that the processor's instructions want.

    PyTorch leaves such products to oneDNN, which puts a matrix into that order each time, and for the few rows of a
    decode that takes longer than the product. PyTorch's compiler does it once and for all, with the operations that are
    used here; they are not part of its documented interface, so `able` asks for them.
    """

    @staticmethod
    def able() -> bool:
        operations = torch.ops.mkldnn
        names = "_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported"
        return all(hasattr(operations, name) for name in names) and operations._is_mkldnn_bf16_supported()

    def __init__(self, config: GPTConfig, weights: Mapping[str, Array]) -> None:
        super().__init__(config, weights)
        matrices = [name for name in weights if name.startswith("h.") and weights[name].ndim == 2]
        self._packed = {name: pack(weights[name].T) for name in matrices}
        self._head = pack(self._head)
        unpack = {name: partial(unpack_transposed, packed) for name, packed in self._packed.items()}
        if "lm_head.weight" in weights:
            unpack["lm_head.weight"] = self._head.to_dense
        self.weights = PackedWeights(weights, unpack)

    def logits(self, hidden: Array) -> Array:
        return linear(hidden, self._head, None)  # [N, V]

    def _linear(self, name: str, x: Array) -> Array:
        return linear(x, self._packed[name + ".weight"], self.weights[name + ".bias"])  # [T, out]

    def _mlp(self, name: str, x: Array) -> Array:
        inner = name + ".c_fc"
        x = linear(x, self._packed[inner + ".weight"], self.weights[inner + ".bias"], "gelu", "tanh")  # [T, 4C]
        return self._linear(name + ".c_proj", x)  # [T, C]


def pack(weight: Array) -> Array:
    """[out, in], in oneDNN's order; what that is, only oneDNN knows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def unpack_transposed(packed: Array) -> Array:
    return packed.to_dense().T  # [in, out]


def linear(x: Array, packed: Array, bias: Array | None, activation: str = "none", form: str = "") -> Array:
    """x @ weight.T + bias, and the activation: [T, in] -> [T, out]."""
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), packed, bias, activation, [], form)
