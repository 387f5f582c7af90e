"""The same GPT with PyTorch's own operation where it has one for several of ours.

A layer norm is eight array operations in `gpt.py`, each of which reads and writes all numbers; PyTorch has it as one,
which also computes in float32 when the numbers are bfloat16. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import addmm
from torch.nn.functional import gelu, layer_norm, pad

from minipage.model.gpt import GPT, Array, GPTConfig


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
        return addmm(self.weights[name + ".bias"], x, self.weights[name + ".weight"])  # [T, in] -> [T, out]

    def _layer_norm(self, name: str, x: Array) -> Array:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]  # [C] each
        return layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_epsilon)  # [T, C]

    def _gelu(self, x: Array) -> Array:
        return gelu(x, approximate="tanh")  # [T, 4C]
