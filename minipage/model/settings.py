"""What the JSON files of a model folder say: its sizes, and the tokens that end a text."""

from __future__ import annotations

import json
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from pathlib import Path
from typing import Any

from minipage.errors import ModelError, shown
from minipage.model.gpt import GPTConfig

LFS_POINTER = b"version https://git-lfs"  # how the file begins that Git leaves in place of a large one

# GPT-2's names for its sizes, and those that most other models have; transformers takes the latter first.
SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
LARGEST_SIZE = 2**31 - 1
DEEPEST = 16  # lists in one another
EXPECTED = {
    "model_type": ("gpt2",),
    # Several names of one function.
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({why(path, error)}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object. Fetch it again.")
    return content


def why(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in words that help."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(LFS_POINTER))
    except (OSError, ValueError):  # the latter: no file can have such a name
        return str(error)
    if beginning == LFS_POINTER:
        return "it is only a pointer of Git LFS: `git lfs pull` in its folder gets the file itself"
    if beginning.startswith((BOM_UTF8, BOM_UTF16_LE, BOM_UTF16_BE)):
        return "an editor has put a byte order mark in front: save it as UTF-8 without one"
    return str(error)


def read_config(settings: dict[str, Any], folder: Path) -> GPTConfig:
    """The sizes, if this is a GPT-2 as `gpt.py` computes it; otherwise ModelError."""
    path = folder / "config.json"
    for name, values in EXPECTED.items():
        if settings.get(name, values[0]) not in values:
            found = f"{path} says {name} = {shown(settings[name])}"
            raise ModelError(f"{found}, but minipage computes only {values[0]!r}. Choose a plain GPT-2.")
    given = {name: value for name, value in settings.items() if value is not None}
    sizes: dict[str, Any] = {name: given.get(other, given.get(name)) for name, other in SIZES.items()}
    inner = {"n_inner": given["n_inner"]} if "n_inner" in given else {}
    epsilon = given.get("layer_norm_epsilon", 1e-5)
    wrong = {name: size for name, size in (sizes | inner).items() if not is_size(size)}
    wrong |= {} if is_epsilon(epsilon) else {"layer_norm_epsilon": epsilon}
    if wrong:
        found = ", ".join(f"{name} = {shown(value)}" for name, value in wrong.items())
        raise ModelError(f"{path} lacks a GPT-2's sizes, or has them wrong: {found}. Fetch it again.")
    config = GPTConfig(**sizes, **inner, layer_norm_epsilon=float(epsilon))
    if config.n_embd % config.n_head:
        raise ModelError(f"{path} has sizes that no GPT-2 can have: {config}. Fetch it again.")
    return config


def is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIZE


def is_epsilon(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def end_tokens(settings: dict[str, Any], folder: Path, vocab_size: int) -> frozenset[int]:
    """Tokens that end a text: those of config.json, and of generation_config.json, if there is one."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    said = (folder / "config.json", settings), (path, generation)
    found = [token_id for file, each in said for token_id in token_ids_in(each.get("eos_token_id"), file)]
    return frozenset(token_id for token_id in found if 0 <= token_id < vocab_size)


def token_ids_in(value: object, path: Path, depth: int = 0) -> list[int]:
    """The whole numbers in what ought to be one or a list of them, and may be null, -1, "50256", ..."""
    if isinstance(value, list):
        if depth == DEEPEST:
            raise ModelError(f"{path} has an eos_token_id of lists in lists in lists; give a list of token ids.")
        return [token_id for each in value for token_id in token_ids_in(each, path, depth + 1)]
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return [int(value)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []
