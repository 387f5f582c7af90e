"""Find a model, read its weights, check that they are what `config.json` says.

A model is a folder in the layout that Hugging Face uses for GPT-2:

    config.json              the sizes
    generation_config.json   may name more tokens that end a text
    model.safetensors        the weights, or several files and a model.safetensors.index.json that lists them
    tokenizer.json           the tokenizer, or vocab.json and merges.txt; without it, prompts must be token ids

Published GPT-2 weights come in several small variations: names with or without a leading `transformer.`, fp32, fp16 or
bf16, the causal masks stored along with them. All are read here, into float32.
"""

from __future__ import annotations

import json
from collections.abc import Set
from os import PathLike
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from minipage.errors import ModelError, count, shown
from minipage.model.gpt import GPTConfig
from minipage.model.pytorch_files import read_pytorch_files
from minipage.model.settings import end_tokens, read_config, read_json, why
from minipage.model.tokenizer import Tokenizer
from minipage.model.tokenizer_files import TOKENIZER_FILES, read_tokenizer

SHIPPED_MODEL = "shakespeare"  # the one in minipage/assets, trained by minipage/train.py
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # what safetensors calls them, and how to read them

Weights = dict[str, npt.NDArray[np.float32]]


class LoadedModel(NamedTuple):
    config: GPTConfig
    weights: Weights  # the names and shapes of config.weight_shapes(), perhaps lm_head.weight too
    tokenizer: Tokenizer | None  # None: the folder has none
    eos_token_ids: frozenset[int]  # tokens that end a text


class StoredTensor(NamedTuple):
    """A tensor as it lies in a file. Its bytes are read when they are looked at."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]  # [num_bytes]


def load_model(model: str | Path) -> LoadedModel:
    """Load the shipped model, a folder, or a model of the Hugging Face hub such as "gpt2" or "distilgpt2".

    Weights that are stored as float32 are not copied: the system reads them from the file when they are first used. So
    the file may be replaced while they are in use, but not written to.

    Raises:
        ModelError: it cannot be found, is damaged, or is not a GPT-2.
    """
    folder = find_folder(model)
    settings = read_json(folder / "config.json")
    config = read_config(settings, folder)
    weights = read_weights(config, folder, is_tied=bool(settings.get("tie_word_embeddings", True)))
    tokenizer = read_tokenizer(folder)
    if tokenizer and tokenizer.base_vocab_size > config.vocab_size:  # tokens added later may lack a row of weights
        file = next(file for file in TOKENIZER_FILES if (folder / file).exists())  # that it was read from
        raise ModelError(
            f"{folder / file} knows {tokenizer.base_vocab_size} tokens, but the model has {config.vocab_size}: "
            f"it belongs to another model. Put the model's own {file} there."
        )
    return LoadedModel(config, weights, tokenizer, end_tokens(settings, folder, config.vocab_size))


def find_folder(model: str | Path) -> Path:
    """The folder of a model: the shipped one's, the named one, or a download from the hub (kept in the hub's cache)."""
    hint = "Give a folder with config.json, model.safetensors and tokenizer.json, or the name of a GPT-2 on the hub."
    if not isinstance(model, str | PathLike) or not (name := str(model)):
        raise ModelError(f"model is {shown(model)}. {hint}")
    if model == SHIPPED_MODEL:
        return Path(__file__).parent.parent / "assets" / SHIPPED_MODEL
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
        is_file = folder.exists()
    except (OSError, RuntimeError):  # no path can be like this: too long, or of a user who has no home
        is_file = False
    if is_file or name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name or "\0" in name:
        raise ModelError(f"there is no folder {name!r}. {hint}")

    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    settings = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=[*settings, *TOKENIZER_FILES]))
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = f"there is no folder {name!r}, and it could not be fetched from the hub: {reason.rstrip('.')}. {hint}"
        raise ModelError(message) from error


def read_weights(config: GPTConfig, folder: Path, is_tied: bool = True) -> Weights:
    """Every weight that `config` calls for, as float32; ModelError if one is missing or of another shape."""
    shapes = config.weight_shapes()
    stored = read_stored(folder, {*shapes, "lm_head.weight"})
    if "lm_head.weight" in stored or not is_tied:
        shapes["lm_head.weight"] = shapes["wte.weight"]
    missing = sorted(shapes.keys() - stored.keys())
    if missing:
        raise ModelError(
            f"{folder} lacks {count(len(missing), 'weight')}, {missing[0]!r} first: is it a GPT-2, and complete?"
        )
    for name, expected in shapes.items():
        tensor = stored[name]
        if tensor.shape != expected:
            raise ModelError(f"{folder}: {name!r} has shape {tensor.shape}; by config.json it should be {expected}.")
        if tensor.dtype not in DTYPES:
            raise ModelError(f"{folder}: {name!r} is stored as {tensor.dtype}; minipage reads {', '.join(DTYPES)}.")
    return {name: as_float32(stored[name]) for name in shapes}


def read_stored(folder: Path, wanted: Set[str]) -> dict[str, StoredTensor]:
    """The wanted tensors that a folder has; their names come without the prefix `transformer.`."""

    def is_wanted(name: str) -> bool:
        return name.removeprefix("transformer.") in wanted

    if not any(folder.glob("*.safetensors*")) and any(folder.glob("pytorch_model*.bin")):
        tensors = {name: StoredTensor(*tensor) for name, tensor in read_pytorch_files(folder, is_wanted).items()}
    else:
        tensors = {name: tensor for file in weight_files(folder) for name, tensor in read_safetensors(file).items()}
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if is_wanted(name)}


def weight_files(folder: Path) -> list[Path]:
    """Where the weights are. An index is old or of another set of weights, if there is a whole file beside it."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        files = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not files or not all(isinstance(file, str) and is_inside(PurePath(file)) for file in files):
            raise ModelError(f"{index} does not say which file of the folder each weight is in. Fetch it again.")
        return [folder / file for file in sorted(set(files))]
    raise ModelError(f"{whole} is missing or damaged (there is no such file). Fetch it again, or convert the weights.")


def is_inside(path: PurePath) -> bool:
    return not path.is_absolute() and ".." not in path.parts


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file."""
    try:
        with safe_open(path, "numpy"):
            pass  # the header is sound, and the file as long as it says
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_size))
        data = np.memmap(path, np.uint8, "c", 8 + header_size)  # [num_bytes]; "c": what is written stays with us
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} is missing or damaged ({why(path, error)}). Fetch it again.") from error
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(facts["dtype"], tuple(facts["shape"]), np.asarray(data)[slice(*facts["data_offsets"])])
        for name, facts in header.items()
    }


def as_float32(tensor: StoredTensor) -> npt.NDArray[np.float32]:
    array = tensor.data.view(DTYPES[tensor.dtype]).reshape(tensor.shape)
    if tensor.dtype == "BF16":  # the upper half of a float32
        wide = array.astype(np.uint32)
        wide <<= 16
        array = wide.view(np.float32)
    return np.require(array, np.float32, "A")  # a copy, if it is another type or begins at an odd byte
