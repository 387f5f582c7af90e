"""Llama and its kin: Llama 1 to 3, Mistral, Qwen2 and 2.5, Qwen3, SmolLM, TinyLlama, Phi-3.

    token_ids ─▶ embed ─▶ [ RMS norm ─▶ attention ─▶ + ─▶ RMS norm ─▶ gated MLP ─▶ + ] x layers ─▶ RMS norm ─▶ logits

What differs from GPT-2: no positions are added, the heads of q and k are turned by them instead (rope.py); several
heads of q share one of K and V, so the cache is a fraction of the size (Ainslie et al., GQA, arXiv 2305.13245); norms
do not shift; and the MLP multiplies two halves, one of them through a SiLU (Shazeer, arXiv 2002.05202).
K is turned before it is written into the cache: a token's place in its text never changes, so this is done once.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (arXiv 2302.13971).
Shapes: T tokens in the batch, C = hidden_size, H heads of size D, KH heads of K and V, I = intermediate_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from minipage.errors import ModelError, shown
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
from minipage.model.settings import first_given, read_sizes, refuse_disputed, refuse_other

QKV = "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"
GATED = "mlp.gate_proj", "mlp.up_proj"
FULL, SLIDING = "full_attention", "sliding_attention"
SIZES = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings".split()


@dataclass(frozen=True)
class Llama:
    """The sizes of a Llama, under the names `config.json` gives them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rotary: Rotary
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # each head of q and k has a norm of its own
    is_fused: bool = False  # the checkpoint has q, k and v in one matrix, and gate and up in another
    tie_word_embeddings: bool = False
    windows: tuple[int | None, ...] = ()  # of each layer, how many tokens it sees; empty: all of them

    together: ClassVar[tuple[tuple[str, ...], ...]] = (QKV, GATED)

    @property
    def num_heads(self) -> int:
        return self.num_attention_heads

    @property
    def max_model_len(self) -> int:
        return self.max_position_embeddings

    @property
    def kv(self) -> KVSpec:
        return KVSpec(self.num_hidden_layers, self.num_key_value_heads, self.head_dim, self.windows)

    @property
    def head(self) -> str:
        return "embed_tokens" if self.tie_word_embeddings else "lm_head"

    def weights(self) -> Iterator[tuple[str, Weight]]:
        C, inner = self.hidden_size, self.intermediate_size
        q_size, kv_size = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        yield "embed_tokens.weight", Weight((self.vocab_size, C), "in", is_table=True)
        for i in range(self.num_hidden_layers):
            block = f"layers.{i}."
            yield from norm(block + "input_layernorm", C)
            yield from linear(block + QKV[0], C, q_size, "out", self.qkv_bias, heads="q")
            for name in QKV[1:]:
                yield from linear(block + name, C, kv_size, "out", self.qkv_bias, heads="kv")
            if self.qk_norm:
                yield from norm(block + "self_attn.q_norm", self.head_dim)
                yield from norm(block + "self_attn.k_norm", self.head_dim)
            yield from linear(block + "self_attn.o_proj", q_size, C, "in", self.o_bias, heads="q")
            yield from norm(block + "post_attention_layernorm", C)
            for name in GATED:
                yield from linear(block + name, C, inner, "out", self.mlp_bias)
            yield from linear(block + "mlp.down_proj", inner, C, "in", self.mlp_bias)
        yield from norm("norm", C)
        if not self.tie_word_embeddings:
            yield "lm_head.weight", Weight((self.vocab_size, C), "in")

    def forward(self, layers: Layers, token_ids: Array, positions: Array, attend: Attend) -> Array:
        D, epsilon = self.head_dim, self.rms_norm_eps
        x = layers.embed("embed_tokens", token_ids)  # [T, C]
        turn = layers.rotation(positions, *self.rotary)
        for i in range(self.num_hidden_layers):
            block = layers.at(f"layers.{i}")
            h = block.rms_norm("input_layernorm", x, epsilon)  # [T, C]
            q, k, v = (heads(a, D) for a in block.linears(QKV, h))  # [T, H, D], and twice [T, KH, D]
            if self.qk_norm:
                q = block.rms_norm("self_attn.q_norm", q, epsilon)  # [T, H, D]
                k = block.rms_norm("self_attn.k_norm", k, epsilon)  # [T, KH, D]
            q, k = block.rotate_both(q, k, turn)
            x = block.linear("self_attn.o_proj", flat(attend(i, q, k, v)), onto=x)  # [T, C]
            h = block.rms_norm("post_attention_layernorm", x, epsilon)  # [T, C]
            h = block.gated_linear(GATED, h)  # [T, I]
            x = block.linear("mlp.down_proj", h, onto=x)  # [T, C]
        return layers.rms_norm("norm", x, epsilon)  # [T, C]

    def logits(self, layers: Layers, hidden: Array) -> Array:
        return layers.scores(self.head, hidden)  # [N, V]

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        refuse_other(settings, {"hidden_act": ("silu", "swish")}, "a Llama with SwiGLU")
        kind = settings.get("model_type", "llama")
        epsilon = {"rms_norm_eps": 1e-5 if kind == "phi3" else 1e-6}  # if it is not given, as in transformers
        sizes = read_sizes(settings, "a Llama", dict(zip(SIZES, SIZES)), ("num_key_value_heads", "head_dim"), epsilon)
        num_heads = sizes["num_attention_heads"]
        sizes.setdefault("head_dim", sizes["hidden_size"] // num_heads)
        num_kv_heads = sizes.setdefault("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads or sizes["head_dim"] % 2:
            raise ModelError(
                f"it has {num_heads} heads of {sizes['head_dim']} and {num_kv_heads} of K and V, which cannot be. "
                "Fetch config.json again."
            )
        has_bias = bool(settings.get("attention_bias", False))
        return cls(
            **sizes,
            rotary=read_rotary(settings, sizes["head_dim"], may_be_partial=kind == "phi3"),
            qkv_bias=has_bias or kind == "qwen2",
            o_bias=has_bias and kind != "qwen2",  # whose q, k and v alone have some, whatever it says
            mlp_bias=bool(settings.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
            is_fused=kind == "phi3",
            tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
            windows=read_windows(settings, kind, sizes["num_hidden_layers"], sizes["max_position_embeddings"]),
        )

    def adapt(self, tensors: Tensors) -> Iterator[tuple[str, Array]]:
        """Checkpoints have our names, and matrices as (out, in); Phi-3's several in one."""
        fused = {"self_attn.qkv_proj": QKV, "mlp.gate_up_proj": GATED} if self.is_fused else {}
        whole = {part: (name, parts) for name, parts in fused.items() for part in parts}
        shapes = {name: weight.shape for name, weight in self.weights()}
        for name, weight in self.weights():
            block, _, local = name.removesuffix(".weight").partition(".")[2].partition(".")
            if local not in whole:
                yield name, turned(self, tensors, name, weight)
                continue
            fused_name, parts = whole[local]
            sizes = [shapes[f"layers.{block}.{part}.weight"][1] for part in parts]
            start = sum(sizes[: parts.index(local)])
            tensor = tensors(f"layers.{block}.{fused_name}.weight", (sum(sizes), self.hidden_size))
            yield name, tensor[start : start + weight.shape[1]].T  # [in, out]


def read_windows(settings: dict[str, Any], kind: str, num_layers: int, context: int) -> tuple[int | None, ...]:
    """Of each layer, how many tokens it sees, if that is less than the context; empty: all layers see everything.

    A `sliding_window` that is left out is transformers'. Qwen's first `max_window_layers` layers see everything, unless
    `layer_types` says more; of others, neither transformers nor vLLM asks for `use_sliding_window`. What transformers
    ignores and vLLM heeds is refused, unless hf_overrides say it.
    """
    is_qwen = kind.startswith("qwen")
    window = settings.get("sliding_window", 4096 if is_qwen or kind == "mistral" else None)
    is_used = not is_qwen or first_given(settings, "use_sliding_window", default=False)
    types = settings.get("layer_types")
    if not types:
        num_full = settings.get("max_window_layers", 28) if is_qwen else 0
        if not isinstance(num_full, int):
            raise ModelError(
                f"its max_window_layers is {shown(num_full)}, no number of layers. Fetch config.json again."
            )
        types = [FULL if i < num_full else SLIDING for i in range(num_layers)]
    if not isinstance(types, list):
        raise ModelError(f"its layer_types are {shown(types)}; it should be a list. Fetch config.json again.")
    if others := [each for each in types if each not in (FULL, SLIDING)]:
        raise ModelError(
            f"its layer_types have {shown(others[0])}, but minipage computes only {FULL} and {SLIDING}. Choose a model "
            "with these."
        )
    if len(types) != num_layers:
        raise ModelError(f"its layer_types are {len(types)}, but it has {num_layers} layers. Fetch config.json again.")
    if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
        raise ModelError(f"its sliding_window is {shown(window)}, no number of tokens. Fetch config.json again.")
    if not window or not 0 < window < context:
        return ()
    if kind == "phi3" and FULL in types:
        refuse_disputed(settings, "layer_types")
    if not is_used or SLIDING not in types:
        return ()
    if kind == "llama":
        refuse_disputed(settings, "sliding_window")
    return tuple(window if each == SLIDING else None for each in types)
