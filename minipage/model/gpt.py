"""GPT-2, once, for every array library.

A GPT turns token ids into logits: one score for every word of the vocabulary, to be the next token.

    token_ids ─▶ embed ─▶ [ layer norm ─▶ attention ─▶ + ─▶ layer norm ─▶ MLP ─▶ + ] x n_layer ─▶ layer norm ─▶ logits

Two things set it apart from most GPTs in the world:

* It takes one *flat* batch: the tokens of all sequences one after the other, no padding. Every operation works on each
  token by itself, except attention, where a token looks at the tokens before it.
* Attention is handed in. `attend(layer, q, k, v)` may be plain dense attention (`dense_attend` below), or keep K and V
  in a paged cache (`minipage.worker.batch.paged_attend`); the model knows nothing of pages.

Shapes: T tokens in the batch, C = n_embd, H = n_head, D = C / H, V = vocab_size.
The architecture is that of Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

# A NumPy array, a PyTorch tensor or a CuPy array: the array-API standard has no common static type.
Array = Any
# (layer, q [T, H, D], k [T, H, D], v [T, H, D]) -> [T, H, D]
Attend = Callable[[int, Array, Array, Array], Array]


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT-2, under the names `config.json` gives them."""

    vocab_size: int
    n_positions: int  # the context: the longest sequence, in tokens
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None  # width of the MLP; None: 4 * n_embd
    layer_norm_epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight; matrices are stored (in, out), as in the published checkpoints."""
        C, inner = self.n_embd, self.n_inner or 4 * self.n_embd
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (self.vocab_size, C), "wpe.weight": (self.n_positions, C)}
        for i in range(self.n_layer):
            for name, n_in, n_out in (
                ("attn.c_attn", C, 3 * C),
                ("attn.c_proj", C, C),
                ("mlp.c_fc", C, inner),
                ("mlp.c_proj", inner, C),
            ):
                shapes[f"h.{i}.{name}.weight"] = (n_in, n_out)
                shapes[f"h.{i}.{name}.bias"] = (n_out,)
        for norm in [f"h.{i}.ln_{j}" for i in range(self.n_layer) for j in (1, 2)] + ["ln_f"]:
            shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (C,)
        return shapes


class GPT:
    """A GPT-2: its sizes, its weights, and the forward pass.

    `weights` maps the names of `GPTConfig.weight_shapes()` to arrays of one library, all of one floating dtype. An
    extra `lm_head.weight` [V, C] is used for the logits if there is one; otherwise they share the token embedding.
    """

    def __init__(self, config: GPTConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.weights = weights

    def forward(self, token_ids: Array, positions: Array, attend: Attend) -> Array:
        """Run the network over a flat batch.

        Args:
            token_ids: [T] integers below `vocab_size`.
            positions: [T] integers below `n_positions`; where each token stands in its own sequence.
            attend: called once per layer with that layer's q, k, v, each [T, H, D]; returns [T, H, D].

        Returns:
            [T, C] hidden states, one per token, ready for `logits`.
        """
        w, config = self.weights, self.config
        xp = array_namespace(w["wte.weight"])
        x = xp.take(w["wte.weight"], token_ids, axis=0) + xp.take(w["wpe.weight"], positions, axis=0)  # [T, C]
        for i in range(config.n_layer):
            h = self._layer_norm(f"h.{i}.ln_1", x)  # [T, C]
            qkv = self._linear(f"h.{i}.attn.c_attn", h)  # [T, 3C]
            qkv = xp.reshape(qkv, (-1, 3, config.n_head, config.head_size))  # [T, 3, H, D]
            mixed = attend(i, qkv[:, 0], qkv[:, 1], qkv[:, 2])  # [T, H, D]
            x = x + self._linear(f"h.{i}.attn.c_proj", xp.reshape(mixed, (-1, config.n_embd)))  # [T, C]
            h = self._layer_norm(f"h.{i}.ln_2", x)  # [T, C]
            x = x + self._mlp(f"h.{i}.mlp", h)  # [T, C]
        return self._layer_norm("ln_f", x)  # [T, C]

    def logits(self, hidden: Array) -> Array:
        """[N, C] hidden states -> [N, V] scores of the next token."""
        head = self.weights.get("lm_head.weight", self.weights["wte.weight"])  # [V, C]
        return hidden @ head.T  # [N, V]

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[name + ".weight"] + self.weights[name + ".bias"]  # [T, in] -> [T, out]

    def _layer_norm(self, name: str, x: Array) -> Array:
        xp = array_namespace(x)
        x = x - xp.mean(x, axis=-1, keepdims=True)  # [T, C]
        variance = xp.mean(x * x, axis=-1, keepdims=True)  # [T, 1]
        x = x / xp.sqrt(variance + self.config.layer_norm_epsilon)  # [T, C]
        return x * self.weights[name + ".weight"] + self.weights[name + ".bias"]  # [T, C]

    def _mlp(self, name: str, x: Array) -> Array:
        x = gelu(self._linear(name + ".c_fc", x))  # [T, 4C]
        return self._linear(name + ".c_proj", x)  # [T, C]


def gelu(x: Array) -> Array:
    """GPT-2's smooth ReLU, in the tanh form it was trained with (Hendrycks and Gimpel, arXiv 1606.08415)."""
    xp = array_namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def dense_attend(layer: int, q: Array, k: Array, v: Array) -> Array:
    """Causal attention over one whole sequence, with no cache: what paging must never change.

    q, k, v: [T, H, D], the tokens 0 .. T-1 of one sequence. Returns [T, H, D].
    """
    xp = array_namespace(q)
    q, k, v = (xp.permute_dims(a, (1, 0, 2)) for a in (q, k, v))  # each [H, T, D]
    scores = q @ xp.permute_dims(k, (0, 2, 1)) / math.sqrt(q.shape[-1])  # [H, T, T]
    t = xp.arange(q.shape[1], device=device(q))  # [T]
    scores = xp.where(t[:, None] >= t[None, :], scores, -math.inf)  # [H, T, T]; no token sees a later one
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))  # [H, T, T]
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)  # [H, T, T]
    return xp.permute_dims(weights @ v, (1, 0, 2))  # [T, H, D]
