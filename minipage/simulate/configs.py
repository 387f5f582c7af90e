"""Sizes of well-known models, as their config.json has them: enough to plan with, and no weight is needed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from minipage.errors import ConfigurationError, ModelError, shown
from minipage.model.architecture import Architecture
from minipage.model.checkpoint import find_folder, gguf_file, read_architecture
from minipage.model.settings import read_json

LLAMA_3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def llama(
    vocabulary: int, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, context: int, **others: Any
) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": context, "hidden_act": "silu", "tie_word_embeddings": False, **others,
    }  # fmt: skip


def opt(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt", "vocab_size": 50_272, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "ffn_dim": 4 * hidden, "max_position_embeddings": 2048,
    }  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": llama(128_256, 4096, 14_336, 32, 32, 8, 131_072, rope_theta=5e5, rope_scaling=LLAMA_3_ROPE),
    "Llama-3.1-70B": llama(128_256, 8192, 28_672, 80, 64, 8, 131_072, rope_theta=5e5, rope_scaling=LLAMA_3_ROPE),
    "Llama-2-7B": llama(32_000, 4096, 11_008, 32, 32, 32, 4096),
    "LLaMA-13B": llama(32_000, 5120, 13_824, 40, 40, 40, 2048),
    "Qwen3-0.6B": llama(
        151_936, 1024, 3072, 28, 16, 8, 40_960, model_type="qwen3", head_dim=128, tie_word_embeddings=True
    ),
    "Qwen3-32B": llama(151_936, 5120, 25_600, 64, 64, 8, 40_960, model_type="qwen3", head_dim=128),
    "Mistral-7B": llama(32_000, 4096, 14_336, 32, 32, 8, 32_768, model_type="mistral", sliding_window=None),
    "SmolLM2-135M": llama(49_152, 576, 1536, 30, 9, 3, 8192, tie_word_embeddings=True),
    "OPT-13B": opt(5120, 40, 40),
    "OPT-66B": opt(9216, 64, 72),
    "OPT-175B": opt(12_288, 96, 96),
    "GPT-2": {
        "model_type": "gpt2", "vocab_size": 50_257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    },
}  # fmt: skip
NICKNAMES = {"gpt2": "GPT-2", "smollm2": "SmolLM2-135M"}


def find_architecture(model: str | Path) -> Architecture:
    """Of a well-known model, of a config.json, or of whatever `LLM` would load.

    Raises ModelError if it is none of these.
    """
    return architecture_of(*find_settings(model))


def architecture_of(path: Path, settings: dict[str, Any]) -> Architecture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a sliding window: what does not fit it is refused anyhow
        return read_architecture(path, settings)


def well_known(model: str | Path) -> dict[str, Any] | None:
    """Settings that come with minipage, if the model has such a name, and no file has it."""
    known = {key.lower(): settings for key, settings in CONFIGS.items()}
    short = str(model).rpartition("/")[2].lower().removesuffix("-instruct")
    return None if Path(model).exists() else known.get(NICKNAMES.get(short, short).lower())


def find_settings(model: str | Path) -> tuple[Path, dict[str, Any]]:
    """The config.json of a model, or a GGUF file that stands for it: where it is, and what it says."""
    path, settings = Path(model), well_known(model)
    if settings is not None:
        return path, settings
    if file := gguf_file(model):
        from minipage.model.gguf_files import read_gguf

        return file, read_gguf(file).config
    if path.suffix != ".json":
        try:
            path = (path if path.is_dir() else find_folder(model, with_weights=False)) / "config.json"
        except ModelError as error:
            raise ModelError(f"{error} Sizes that come with minipage: {', '.join(CONFIGS)}.") from error
    return path, read_json(path, "settings", "Give a model's config.json.")


def refuse_quantized(path: Path, settings: dict[str, Any]) -> None:
    """Raise ConfigurationError if a config.json says that the weights are quantized: it leaves open how."""
    if said := settings.get("quantization_config"):
        how = said.get("quant_method") if isinstance(said, dict) else said
        raise ConfigurationError(
            f"{path} says that its weights are quantized ({shown(how)}). Say in what: fp8, int8 or int4 as "
            "--dtype; or bfloat16, if they are not to be."
        )
