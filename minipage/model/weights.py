"""Find a model, read its weights, check that they are what `config.json` says.

A model is a folder in the layout that Hugging Face uses for GPT-2:

    config.json         the sizes
    model.safetensors   the weights, or several files and a model.safetensors.index.json that lists them
    tokenizer.json      the tokenizer; without it, prompts must be token ids

Published GPT-2 weights come in several small variations: names with or without a leading `transformer.`, fp32, fp16 or
bf16, the causal masks stored along with them. All are read here, into float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, deserialize

from minipage.errors import ModelError
from minipage.model.gpt import GPTConfig
from minipage.model.tokenizer import Tokenizer

SHIPPED_MODEL = "shakespeare"  # the one in minipage/assets, trained by minipage/train.py

Weights = dict[str, npt.NDArray[np.float32]]


class LoadedModel(NamedTuple):
    config: GPTConfig
    weights: Weights  # the names and shapes of config.weight_shapes(), perhaps lm_head.weight too
    tokenizer: Tokenizer | None  # None: the folder has no tokenizer.json
    eos_token_ids: frozenset[int]  # tokens that end a text


def load_model(model: str | Path) -> LoadedModel:
    """Load the shipped model, a folder, or a model of the Hugging Face hub such as "gpt2" or "distilgpt2".

    Raises:
        ModelError: it cannot be found, is damaged, or is not a GPT-2.
    """
    folder = find_folder(model)
    settings = read_json(folder / "config.json")
    config = read_config(settings, folder)
    weights = read_weights(config, folder)
    tokenizer = Tokenizer(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else None
    if tokenizer and tokenizer.vocab_size > config.vocab_size:
        raise ModelError(
            f"{folder / 'tokenizer.json'} knows {tokenizer.vocab_size} tokens, but the model has {config.vocab_size}: "
            "it belongs to another model. Put the model's own tokenizer.json there."
        )
    eos = settings.get("eos_token_id")
    eos_token_ids = [eos] if isinstance(eos, int) else eos or []  # a default of GPT-2's may lie outside the vocabulary
    return LoadedModel(config, weights, tokenizer, frozenset(t for t in eos_token_ids if t < config.vocab_size))


def find_folder(model: str | Path) -> Path:
    """The folder of a model: the shipped one's, the named one, or a download from the hub (kept in the hub's cache)."""
    if model == SHIPPED_MODEL:
        return Path(__file__).parent.parent / "assets" / SHIPPED_MODEL
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    hint = "Give a folder with config.json, model.safetensors and tokenizer.json, or the name of a GPT-2 on the hub."
    name = str(model)
    if folder.exists() or not name or name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"there is no folder {name!r}. {hint}")

    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    try:
        files = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json"]
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = f"there is no folder {name!r}, and it could not be fetched from the hub: {reason} {hint}"
        raise ModelError(message) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}). A model folder needs it.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object. Fetch it again.")
    return content


def read_config(settings: dict[str, Any], folder: Path) -> GPTConfig:
    """The sizes, if this is a GPT-2 as `gpt.py` computes it; otherwise ModelError."""
    expected = {
        "model_type": ("gpt2",),
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    }
    for name, values in expected.items():
        if settings.get(name, values[0]) not in values:
            found = f"{folder / 'config.json'} says {name} = {settings[name]!r}"
            raise ModelError(f"{found}, but minipage computes only {values[0]!r}. Choose a plain GPT-2.")
    try:
        sizes = {name: int(settings[name]) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
        epsilon = float(settings.get("layer_norm_epsilon", 1e-5))
        config = GPTConfig(**sizes, n_inner=settings.get("n_inner"), layer_norm_epsilon=epsilon)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} lacks a GPT-2's sizes, or has them wrong ({error!r}).") from error
    if min(config.vocab_size, config.n_positions, config.n_layer, config.n_head) < 1 or config.n_embd % config.n_head:
        raise ModelError(f"{folder / 'config.json'} has sizes that no GPT-2 can have: {config}.")
    return config


def read_weights(config: GPTConfig, folder: Path) -> Weights:
    """Every weight that `config` calls for, as float32; ModelError if one is missing or of another shape."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index).get("weight_map", {}).values())) if index.exists() else ["model.safetensors"]
    shapes = config.weight_shapes()
    optional = {"lm_head.weight": shapes["wte.weight"]}
    weights = {
        name: tensor
        for file in files
        for name, tensor in read_safetensors(folder / file).items()
        if name in shapes or name in optional
    }
    missing = sorted(shapes.keys() - weights.keys())
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} weights, {missing[0]!r} first: is it a GPT-2, and complete?")
    for name, weight in weights.items():
        expected = (shapes | optional)[name]
        if weight.shape != expected:
            raise ModelError(f"{folder}: {name!r} has shape {weight.shape}; by config.json it should be {expected}.")
    return weights


def read_safetensors(path: Path) -> Weights:
    """All floating-point tensors of a file as float32, without the prefix `transformer.`."""
    try:
        tensors = deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is missing or damaged ({error}). Fetch it again.") from error
    readers = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    weights = {}
    for name, tensor in tensors:
        if tensor["dtype"] in readers:
            array = np.frombuffer(tensor["data"], readers[tensor["dtype"]]).reshape(tensor["shape"])
            if tensor["dtype"] == "BF16":  # the upper half of a float32
                array = (array.astype(np.uint32) << 16).view(np.float32)
            weights[name.removeprefix("transformer.")] = array.astype(np.float32, copy=False)
    return weights
