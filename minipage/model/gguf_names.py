"""Where a GGUF file's names differ from Hugging Face's: sizes and tensors, for each architecture that is served.

In a GGUF, all architectures share one set of names: blk.3.attn_q.weight is model.layers.3.self_attn.q_proj.weight.
Two are stored differently, too (`restored`): llama.cpp rotates *neighbouring* numbers of q and k where Hugging Face
rotates the two *halves* of a head, so its "llama" files have the rows of both matrices in another order; qwen2 and
qwen3 do not. And GPT-2's matrices, which Hugging Face keeps as (in, out), lie there as (out, in), like all others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minipage.errors import ModelError, shown

Array = npt.NDArray[np.float32]


class Names(NamedTuple):
    """Hugging Face's names for the tensors of an architecture."""

    model: Mapping[str, str]  # those outside the layers
    layer: str  # how names in a layer begin
    inside: Mapping[str, str]  # those in a layer
    optional: Collection[str] = ()  # what a model may lack

    def translate(self, name: str) -> str | None:
        """Hugging Face's name of a GGUF's tensor; None if there is none."""
        stem, _, kind = name.rpartition(".")  # kind: weight or bias
        if not stem.startswith("blk."):
            return f"{self.model[stem]}.{kind}" if stem in self.model else None
        _, number, part = stem.split(".", 2) if stem.count(".") > 1 else ("", "", "")
        return f"{self.layer.format(number)}{self.inside[part]}.{kind}" if part in self.inside else None

    def required(self, num_layers: int) -> list[str]:
        """The GGUF names of all weights that no model can do without."""
        layers = [f"blk.{i}.{part}" for i in range(num_layers) for part in self.inside]
        return [f"{stem}.weight" for stem in [*self.model, *layers] if stem.split(".")[-1] not in self.optional]


LLAMA = Names(
    model={"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    layer="model.layers.{}.",
    inside={
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    },
    optional=("output", "attn_q_norm", "attn_k_norm"),
)
GPT2 = Names(
    model={
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    layer="transformer.h.{}.",
    inside={
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    },
    optional=("output",),
)
ARCHITECTURES = {"llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gpt2": GPT2}

FACTORS = "rope.scaling.factor", "rope.scale_linear"
ROPE_FACTORS = "rope_freqs.weight"  # by which each frequency of the rotation is divided, in Llama 3.1 and later


def restored(array: Array, name: str, config: Mapping[str, Any]) -> Array:
    """A GGUF's tensor as Hugging Face would store it."""
    if is_transposed(name, array.ndim, config):
        return array.T  # [n_in, n_out]
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if config["model_type"] == "llama" and heads:
        return halves_from_pairs(array, config[heads])
    return array


def is_transposed(name: str, num_dimensions: int, config: Mapping[str, Any]) -> bool:
    return config["model_type"] == "gpt2" and num_dimensions == 2 and name.startswith("blk.")


def halves_from_pairs(array: Array, num_heads: int) -> Array:
    """Rows of each head in the order 0, 2, 4, ... 1, 3, 5, ...: a pair to rotate is then one row of either half."""
    if array.shape[0] % (2 * num_heads):
        raise ModelError(f"it has {array.shape[0]} rows for {num_heads} heads. Fetch it again.")
    pairs = array.reshape(num_heads, -1, 2, *array.shape[1:])  # [num_heads, head_dim / 2, 2, ...]
    return pairs.swapaxes(1, 2).reshape(array.shape)


def config_of(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Array | None
) -> dict[str, Any]:
    """What config.json would say of this model.

    Args:
        metadata: the entries of the file
        shapes: of each tensor, under the file's names
        factors: what the file has as ROPE_FACTORS
    """
    architecture = metadata["general.architecture"]
    config = gpt2_config(metadata) if architecture == "gpt2" else llama_config(metadata, shapes, factors)
    end = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    return config | {
        "model_type": architecture,
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": sorted({token_id for token_id in end if token_id is not None}),
    }


def gpt2_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": required(metadata, "gpt2.context_length"),
        "n_embd": required(metadata, "gpt2.embedding_length"),
        "n_layer": required(metadata, "gpt2.block_count"),
        "n_head": required(metadata, "gpt2.attention.head_count"),
        "n_inner": metadata.get("gpt2.feed_forward_length"),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": decimal(metadata.get("gpt2.attention.layer_norm_epsilon", 1e-5)),
    }


def llama_config(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Array | None
) -> dict[str, Any]:
    architecture = metadata["general.architecture"]
    facts = {name.removeprefix(f"{architecture}."): value for name, value in metadata.items()}
    if facts.get("expert_count"):
        raise ModelError("it is a mixture of experts, and minipage serves none. Choose a dense model.")
    width, num_heads = required(facts, "embedding_length"), required(facts, "attention.head_count")
    has_length = "attention.key_length" in facts
    head_dim = required(facts, "attention.key_length") if has_length else width // num_heads
    theta = decimal(facts.get("rope.freq_base", 10_000.0))
    turned = facts.get("rope.dimension_count", head_dim)
    if architecture == "llama" and turned != head_dim:  # nobody says how the rows of such heads are ordered
        raise ModelError(f"it turns {shown(turned)} of the {head_dim} numbers of a head; a llama's are turned whole.")
    class_name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture]
    return {
        "architectures": [f"{class_name}ForCausalLM"],
        "hidden_size": width,
        "intermediate_size": required(facts, "feed_forward_length"),
        "num_hidden_layers": required(facts, "block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": facts.get("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": required(facts, "context_length"),
        "hidden_act": "silu",
        "rms_norm_eps": decimal(required(facts, "attention.layer_norm_rms_epsilon")),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(facts) if factors is None else llama3_scaling(factors, head_dim, theta),
        "rope.dimension_count": turned,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        "sliding_window": facts.get("attention.sliding_window"),
    }


def required(facts: Mapping[str, Any], name: str) -> Any:
    """A size, or the epsilon of a norm."""
    number = facts.get(name)
    if isinstance(number, list) and len(set(number)) == 1:  # said for each layer
        number = number[0]
    if not isinstance(number, int | float) or not 0 < number < 2**31:
        raise ModelError(f"it says {name} = {shown(number)}; minipage takes one number above 0 for all layers.")
    return number


def decimal(number: float) -> float:
    """The number that was meant: 1e-5, which as float32 became 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def rope_scaling(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the rotation is stretched beyond the context that the model was first trained for.

    Older files have a factor without a kind, and still older ones under another name; llama.cpp takes both as linear.
    """
    factor = next((name for name in FACTORS if name in facts), None)
    kind = facts.get("rope.scaling.type", "linear" if factor else "none")
    if kind == "none":
        return None
    further = [name for name in facts if name.startswith(("rope.scaling.attn_factor", "rope.scaling.yarn_"))]
    if kind not in ("linear", "yarn") or further:
        what = f"rope.scaling.type = {shown(kind)}" + (f" with {further[0]}" if further else "")
        raise ModelError(f"it says {what}, and minipage knows linear and plain yarn.")
    scaling = {"rope_type": kind, "factor": decimal(required(facts, factor or FACTORS[0]))}
    if "rope.scaling.original_context_length" in facts:
        scaling["original_max_position_embeddings"] = facts["rope.scaling.original_context_length"]
    return scaling


def llama3_scaling(factors: Array, head_dim: int, theta: float) -> dict[str, Any]:
    """The settings of Llama 3.1's scaling, of which a GGUF has only the result: a factor for each frequency."""
    low, high, context, factor = 1.0, 4.0, 8192, float(factors.max())  # the same in all of Meta's models, but the last
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)  # [head_dim / 2]
    share = np.clip((context / wavelength - low) / (high - low), 0, 1)  # [head_dim / 2], of the frequency as it was
    expected = 1 / ((1 - share) / factor + share)  # [head_dim / 2]
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise ModelError(f"its {ROPE_FACTORS} are not those of Llama 3.1 or later, and minipage knows no others.")
    settings = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": context}
    return {"rope_type": "llama3", "factor": factor} | settings
