"""GPT-2, as Radford et al. built it: "Language Models are Unsupervised Multitask Learners" (2019).

It turns token ids into logits: one score for every word of the vocabulary, to be the next token.

    token_ids ─▶ embed ─▶ [ layer norm ─▶ attention ─▶ + ─▶ layer norm ─▶ MLP ─▶ + ] x n_layer ─▶ layer norm ─▶ logits

Two things set it apart from most GPTs in the world:

* It takes one *flat* batch: the tokens of all sequences one after the other, no padding. Every operation works on each
  token by itself, except attention, where a token looks at the tokens before it.
* Attention is handed in. `attend(layer, q, k, v)` may be plain dense attention (`minipage.model.dense`), or keep K and
  V in a paged cache (`minipage.worker.batch.paged_attend`); the model knows nothing of pages.

Shapes: T tokens in the batch, C = n_embd, n = n_head, D = C / n, V = vocab_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from minipage.errors import ModelError
from minipage.model.architecture import Array, Attend, KVSpec, Layers, Tensors, Weight, flat, heads, linear, norm
from minipage.model.settings import read_sizes, refuse_other

QKV = ("attn.q", "attn.k", "attn.v")

# GPT-2's names for its sizes, and those that most other models have; transformers takes the latter first.
SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
COMPUTED = {
    # Several names of one function.
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}


@dataclass(frozen=True)
class GPT2:
    """The sizes of a GPT-2, under the names `config.json` gives them."""

    vocab_size: int
    n_positions: int  # the context: the longest sequence, in tokens
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None  # width of the MLP; None: 4 * n_embd
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True  # the logits are made with the token embedding
    sliding_window: int | None = None  # how many tokens each layer sees; no GPT-2 was trained so, but one can try

    together: ClassVar[tuple[tuple[str, ...], ...]] = (QKV,)

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def num_heads(self) -> int:
        return self.n_head

    @property
    def max_model_len(self) -> int:
        return self.n_positions

    @property
    def kv(self) -> KVSpec:
        return KVSpec(self.n_layer, self.n_head, self.head_size, (self.sliding_window,) * self.n_layer)

    @property
    def head(self) -> str:
        return "wte" if self.tie_word_embeddings else "lm_head"

    def weights(self) -> Iterator[tuple[str, Weight]]:
        C, inner = self.n_embd, self.n_inner or 4 * self.n_embd
        yield "wte.weight", Weight((self.vocab_size, C), "in", is_table=True)
        yield "wpe.weight", Weight((self.n_positions, C), is_table=True)
        for i in range(self.n_layer):
            yield from norm(f"h.{i}.ln_1", C, bias=True)
            for name in QKV:
                yield from linear(f"h.{i}.{name}", C, C, "out", bias=True, heads="q")
            yield from linear(f"h.{i}.attn.c_proj", C, C, "in", bias=True, heads="q")
            yield from norm(f"h.{i}.ln_2", C, bias=True)
            yield from linear(f"h.{i}.mlp.c_fc", C, inner, "out", bias=True)
            yield from linear(f"h.{i}.mlp.c_proj", inner, C, "in", bias=True)
        yield from norm("ln_f", C, bias=True)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", Weight((self.vocab_size, C), "in")

    def forward(self, layers: Layers, token_ids: Array, positions: Array, attend: Attend) -> Array:
        D, epsilon = self.head_size, self.layer_norm_epsilon
        x = layers.embed("wte", token_ids) + layers.embed("wpe", positions)  # [T, C]
        for i in range(self.n_layer):
            block = layers.at(f"h.{i}")
            h = block.layer_norm("ln_1", x, epsilon)  # [T, C]
            q, k, v = block.linears(QKV, h)  # each [T, C]
            mixed = attend(i, heads(q, D), heads(k, D), heads(v, D))  # [T, n, D]
            x = block.linear("attn.c_proj", flat(mixed), onto=x)  # [T, C]
            h = block.layer_norm("ln_2", x, epsilon)  # [T, C]
            h = block.linear("mlp.c_fc", h, then="gelu")  # [T, inner]
            x = block.linear("mlp.c_proj", h, onto=x)  # [T, C]
        return layers.layer_norm("ln_f", x, epsilon)  # [T, C]

    def logits(self, layers: Layers, hidden: Array) -> Array:
        return layers.scores(self.head, hidden)  # [N, V]

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        refuse_other(settings, COMPUTED, "a plain GPT-2")
        sizes = read_sizes(
            settings, "a GPT-2", SIZES, optional=("n_inner", "sliding_window"), numbers={"layer_norm_epsilon": 1e-5}
        )
        gpt2 = cls(**sizes, tie_word_embeddings=bool(settings.get("tie_word_embeddings", True)))
        if gpt2.n_embd % gpt2.n_head:
            raise ModelError(f"it has sizes that no GPT-2 can have: {gpt2}. Fetch it again.")
        return gpt2

    def adapt(self, tensors: Tensors) -> Iterator[tuple[str, Array]]:
        """Published checkpoints have the names that we have, but q, k and v as one matrix, `attn.c_attn`."""
        C = self.n_embd
        for name, weight in self.weights():
            block, is_q, kind = name.partition("attn.q.")
            if is_q:
                qkv = tensors(f"{block}attn.c_attn.{kind}", (*weight.shape[:-1], 3 * C))  # [C, 3C] or [3C]
                for n, each in enumerate(QKV):
                    yield f"{block}{each}.{kind}", qkv[..., n * C : (n + 1) * C]  # [C, C] or [C]
            elif "attn.k." not in name and "attn.v." not in name:
                yield name, tensors(name, weight.shape)
