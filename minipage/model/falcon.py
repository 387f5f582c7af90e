"""Falcon: attention and MLP side by side, and one head of K and V for all heads of q, or for each group of them.

    x ─┬─▶ layer norm ─▶ attention ─┐
       ├─▶ layer norm ─▶ MLP ───────┤        both read what came in, so neither waits for the other
       └────────────────────────────┴─▶ +

With one head of K and V (multi-query) the cache of the 7B is 71 times smaller than with one for each head of q.

Almazrouei et al., "The Falcon Series of Open Language Models" (arXiv 2311.16867).
Shapes: T tokens in the batch, C = hidden_size, H heads of size D, KH heads of K and V, F = ffn_hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from minipage.errors import ModelError
from minipage.model.architecture import (
    Array,
    Attend,
    KVSpec,
    Layers,
    Tensors,
    Weight,
    flat,
    heads,
    linear,
    norm,
    turned,
)
from minipage.model.rope import Rotary, read_rotary
from minipage.model.settings import read_sizes, refuse_other

QKV = "self_attention.q", "self_attention.k", "self_attention.v"
SIZES = "vocab_size hidden_size num_hidden_layers num_attention_heads".split()
ACTIVATIONS = {"gelu": "gelu_exact", "gelu_new": "gelu", "relu": "relu"}


@dataclass(frozen=True)
class Falcon:
    """The sizes of a Falcon, under the names `config.json` gives them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_kv_heads: int
    ffn_hidden_size: int
    max_position_embeddings: int
    rotary: Rotary
    layer_norm_epsilon: float = 1e-5
    activation: Any = "gelu_exact"
    bias: bool = False
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "input_layernorm"  # the same, or one of its own
    parallel_attn: bool = True
    tie_word_embeddings: bool = True

    together: ClassVar[tuple[tuple[str, ...], ...]] = (QKV,)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_heads(self) -> int:
        return self.num_attention_heads

    @property
    def max_model_len(self) -> int:
        return self.max_position_embeddings

    @property
    def kv(self) -> KVSpec:
        return KVSpec(self.num_hidden_layers, self.num_kv_heads, self.head_size)

    @property
    def head(self) -> str:
        return "word_embeddings" if self.tie_word_embeddings else "lm_head"

    def weights(self) -> Iterator[tuple[str, Weight]]:
        C, kv_size = self.hidden_size, self.num_kv_heads * self.head_size
        yield "word_embeddings.weight", Weight((self.vocab_size, C), "in", is_table=True)
        for i in range(self.num_hidden_layers):
            block = f"h.{i}."
            for name in dict.fromkeys((self.attention_norm, self.mlp_norm)):
                yield from norm(block + name, C, bias=True)
            yield from linear(block + QKV[0], C, C, "out", self.bias, heads="q")
            for name in QKV[1:]:
                yield from linear(block + name, C, kv_size, "out", self.bias, heads="kv")
            yield from linear(block + "self_attention.dense", C, C, "in", self.bias, heads="q")
            yield from linear(block + "mlp.dense_h_to_4h", C, self.ffn_hidden_size, "out", self.bias)
            yield from linear(block + "mlp.dense_4h_to_h", self.ffn_hidden_size, C, "in", self.bias)
        yield from norm("ln_f", C, bias=True)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", Weight((self.vocab_size, C), "in")

    def forward(self, layers: Layers, token_ids: Array, positions: Array, attend: Attend) -> Array:
        epsilon = self.layer_norm_epsilon
        x = layers.embed("word_embeddings", token_ids)  # [T, C]
        turn = layers.rotation(positions, *self.rotary)
        for i in range(self.num_hidden_layers):
            block = layers.at(f"h.{i}")
            h = block.layer_norm(self.attention_norm, x, epsilon)  # [T, C]
            q, k, v = (heads(a, self.head_size) for a in block.linears(QKV, h))  # [T, H, D], and twice [T, KH, D]
            mixed = attend(i, *block.rotate_both(q, k, turn), v)  # [T, H, D]
            attended = x + block.linear("self_attention.dense", flat(mixed))  # [T, C]
            read = x if self.parallel_attn else attended  # [T, C]
            if self.mlp_norm != self.attention_norm:
                h = block.layer_norm(self.mlp_norm, read, epsilon)  # [T, C]
            h = block.linear("mlp.dense_h_to_4h", h, then=self.activation)  # [T, F]
            x = block.linear("mlp.dense_4h_to_h", h, onto=attended)  # [T, C]
        return layers.layer_norm("ln_f", x, epsilon)  # [T, C]

    def logits(self, layers: Layers, hidden: Array) -> Array:
        return layers.scores(self.head, hidden)  # [N, V]

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        refuse_other(settings, {"activation": tuple(ACTIVATIONS), "alibi": (False,)}, "a Falcon with rotary positions")
        optional = "num_kv_heads", "ffn_hidden_size", "max_position_embeddings"
        sizes = read_sizes(
            settings, "a Falcon", dict(zip(SIZES, SIZES)), optional, numbers={"layer_norm_epsilon": 1e-5}
        )
        is_new = bool(settings.get("new_decoder_architecture", False))
        is_parallel = bool(settings.get("parallel_attn", True)) or is_new
        num_heads = sizes["num_attention_heads"]
        if not is_new:
            sizes["num_kv_heads"] = 1 if settings.get("multi_query", True) else num_heads
        num_kv_heads = sizes.setdefault("num_kv_heads", num_heads)
        sizes.setdefault("ffn_hidden_size", 4 * sizes["hidden_size"])
        sizes.setdefault("max_position_embeddings", 2048)
        if sizes["hidden_size"] % num_heads or num_heads % num_kv_heads:
            raise ModelError(f"{num_heads} heads, {num_kv_heads} of K and V cannot be. Fetch config.json again.")
        norms = "input_layernorm", "input_layernorm" if is_parallel else "post_attention_layernorm"
        if is_new and settings.get("num_ln_in_parallel_attn") in (None, 2):
            norms = "ln_attn", "ln_mlp"
        return cls(
            **sizes,
            rotary=read_rotary(settings, sizes["hidden_size"] // num_heads, may_be_partial=False),
            activation=ACTIVATIONS[settings.get("activation", "gelu")],
            bias=bool(settings.get("bias", False)),
            attention_norm=norms[0],
            mlp_norm=norms[1],
            parallel_attn=is_parallel,
            tie_word_embeddings=bool(settings.get("tie_word_embeddings", True)),
        )

    def adapt(self, tensors: Tensors) -> Iterator[tuple[str, Array]]:
        """Checkpoints have matrices as (out, in); q, k and v are one: for each head of K its of q, it, and V's."""
        group, D = self.num_attention_heads // self.num_kv_heads, self.head_size
        parts = {QKV[0]: slice(0, group), QKV[1]: slice(group, group + 1), QKV[2]: slice(group + 1, group + 2)}
        for name, weight in self.weights():
            block, _, local = name.rpartition(".")[0].partition(".")[2].partition(".")
            if local in parts:
                kind, rest = name.rpartition(".")[2], weight.shape[:-1]
                whole = f"h.{block}.self_attention.query_key_value.{kind}"
                tensor = tensors(whole, (self.num_kv_heads * (group + 2) * D, *rest))  # [KH * (group + 2) * D, C]
                tensor = tensor.reshape((self.num_kv_heads, group + 2, D, *rest))[:, parts[local]]  # [KH, n, D, C]
                yield name, tensor.reshape((weight.shape[-1], *rest)).T  # [C, n]
            else:
                yield name, turned(self, tensors, name, weight)
