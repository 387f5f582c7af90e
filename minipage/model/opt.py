"""OPT, the models that the PagedAttention paper measured; `facebook/opt-125m` is vLLM's first example.

    token_ids ─▶ embed ─▶ [ layer norm ─▶ attention ─▶ + ─▶ layer norm ─▶ MLP ─▶ + ] x layers ─▶ layer norm ─▶ logits

A GPT-2 with ReLU, with two things of its own: the table of positions begins with two rows that no token has, and of all
sizes only 350M puts its layer norms behind what the others put them in front of.

Zhang et al., "OPT: Open Pre-trained Transformer Language Models" (arXiv 2205.01068).
Shapes: T tokens in the batch, C = hidden_size, H heads of size D, E = word_embed_proj_dim, F = ffn_dim.
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
from minipage.model.settings import read_sizes, refuse_other

QKV = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
SIZES = "vocab_size hidden_size num_hidden_layers num_attention_heads ffn_dim max_position_embeddings".split()
ACTIVATIONS = {"relu": "relu", "gelu": "gelu_exact", "gelu_new": "gelu"}
FIRST_POSITION = 2  # the row of the table that the first token has
EPSILON = 1e-5


@dataclass(frozen=True)
class OPT:
    """The sizes of an OPT, under the names `config.json` gives them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    max_position_embeddings: int
    word_embed_proj_dim: int
    activation: Any = "relu"
    do_layer_norm_before: bool = True
    has_final_norm: bool = True
    enable_bias: bool = True
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
        return KVSpec(self.num_hidden_layers, self.num_attention_heads, self.head_size)

    @property
    def head(self) -> str:
        return "embed_tokens" if self.tie_word_embeddings else "lm_head"

    @property
    def is_projected(self) -> bool:
        return self.word_embed_proj_dim != self.hidden_size

    def weights(self) -> Iterator[tuple[str, Weight]]:
        C, E, F = self.hidden_size, self.word_embed_proj_dim, self.ffn_dim
        yield "embed_tokens.weight", Weight((self.vocab_size, E), "in", is_table=True)
        yield "embed_positions.weight", Weight((self.max_position_embeddings + FIRST_POSITION, C), is_table=True)
        if self.is_projected:
            yield from linear("project_in", E, C)
            yield from linear("project_out", C, E)
        for i in range(self.num_hidden_layers):
            block = f"layers.{i}."
            for name in QKV:
                yield from linear(block + name, C, C, "out", self.enable_bias, heads="q")
            yield from linear(block + "self_attn.out_proj", C, C, "in", self.enable_bias, heads="q")
            yield from norm(block + "self_attn_layer_norm", C, bias=True)
            yield from linear(block + "fc1", C, F, "out", self.enable_bias)
            yield from linear(block + "fc2", F, C, "in", self.enable_bias)
            yield from norm(block + "final_layer_norm", C, bias=True)
        if self.has_final_norm:
            yield from norm("final_layer_norm", C, bias=True)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", Weight((self.vocab_size, E), "in")

    def forward(self, layers: Layers, token_ids: Array, positions: Array, attend: Attend) -> Array:
        x = layers.embed("embed_tokens", token_ids)  # [T, E]
        x = layers.linear("project_in", x) if self.is_projected else x  # [T, C]
        x = x + layers.embed("embed_positions", positions + FIRST_POSITION)  # [T, C]
        for i in range(self.num_hidden_layers):
            block, first = layers.at(f"layers.{i}"), self.do_layer_norm_before
            h = block.layer_norm("self_attn_layer_norm", x, EPSILON) if first else x  # [T, C]
            q, k, v = (heads(a, self.head_size) for a in block.linears(QKV, h))  # each [T, H, D]
            x = x + block.linear("self_attn.out_proj", flat(attend(i, q, k, v)))  # [T, C]
            x = x if first else block.layer_norm("self_attn_layer_norm", x, EPSILON)  # [T, C]
            h = block.layer_norm("final_layer_norm", x, EPSILON) if first else x  # [T, C]
            x = x + block.linear("fc2", block.linear("fc1", h, then=self.activation))  # [T, C]
            x = x if first else block.layer_norm("final_layer_norm", x, EPSILON)  # [T, C]
        return layers.layer_norm("final_layer_norm", x, EPSILON) if self.has_final_norm else x  # [T, C]

    def logits(self, layers: Layers, hidden: Array) -> Array:
        hidden = layers.linear("project_out", hidden) if self.is_projected else hidden  # [N, E]
        return layers.scores(self.head, hidden)  # [N, V]

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        computed = {"activation_function": tuple(ACTIVATIONS), "layer_norm_elementwise_affine": (True,)}
        refuse_other(settings, computed, "an OPT as published")
        sizes = read_sizes(settings, "an OPT", dict(zip(SIZES, SIZES)), ("word_embed_proj_dim",))
        sizes.setdefault("word_embed_proj_dim", sizes["hidden_size"])
        if sizes["hidden_size"] % sizes["num_attention_heads"]:
            raise ModelError("its hidden_size is no multiple of num_attention_heads. Fetch config.json again.")
        first = bool(settings.get("do_layer_norm_before", True))
        return cls(
            **sizes,
            activation=ACTIVATIONS[settings.get("activation_function", "relu")],
            do_layer_norm_before=first,
            has_final_norm=first and not settings.get("_remove_final_layer_norm", False),
            enable_bias=bool(settings.get("enable_bias", True)),
            tie_word_embeddings=bool(settings.get("tie_word_embeddings", True)),
        )

    def adapt(self, tensors: Tensors) -> Iterator[tuple[str, Array]]:
        """Checkpoints have our names, and matrices as (out, in)."""
        for name, weight in self.weights():
            yield name, turned(self, tensors, name, weight)
