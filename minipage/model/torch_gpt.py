"""The same GPT with PyTorch's own operation where it has one for several of ours.

A layer norm is eight array operations in `gpt.py`, each of which reads and writes all numbers; PyTorch has it as one,
which also computes in float32 when the numbers are bfloat16. What is computed is the same.
"""

from __future__ import annotations

from torch import addmm
from torch.nn.functional import gelu, layer_norm

from minipage.model.gpt import GPT, Array


class TorchGPT(GPT):
    """A GPT whose weights are PyTorch tensors."""

    def _linear(self, name: str, x: Array) -> Array:
        return addmm(self.weights[name + ".bias"], x, self.weights[name + ".weight"])  # [T, in] -> [T, out]

    def _layer_norm(self, name: str, x: Array) -> Array:
        weight, bias = self.weights[name + ".weight"], self.weights[name + ".bias"]  # [C] each
        return layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_epsilon)  # [T, C]

    def _gelu(self, x: Array) -> Array:
        return gelu(x, approximate="tanh")  # [T, 4C]
