"""Find a model, read its weights, check that they are what `config.json` says.

A model is a folder in the layout that Hugging Face uses:

    config.json              which architecture it is, and its sizes
    generation_config.json   may name more tokens that end a text
    model.safetensors        the weights, or several files and a model.safetensors.index.json that lists them
    tokenizer.json           the tokenizer, or vocab.json and merges.txt; without it, prompts must be token ids

Published weights come in several small variations: names with or without a leading `transformer.`, fp32, fp16 or bf16,
the causal masks stored along with them. All are read here, as float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from minipage.errors import ModelError, count, shown
from minipage.model.architecture import Architecture, Array
from minipage.model.falcon import Falcon
from minipage.model.gpt2 import GPT2
from minipage.model.llama import Llama
from minipage.model.opt import OPT
from minipage.model.pytorch_files import read_pytorch_files
from minipage.model.settings import end_tokens, read_json, why
from minipage.model.tokenizer import Tokenizer
from minipage.model.tokenizer_files import TOKENIZER_FILES, read_tokenizer
from minipage.simd.halves import from_bfloat16

SHIPPED_MODEL = "shakespeare"  # the one in minipage/assets, trained by minipage/train.py
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # what safetensors calls them, and how to read them

ARCHITECTURES: dict[str, type[Architecture]] = {  # by what config.json calls their model_type
    "gpt2": GPT2,
    "opt": OPT,
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "qwen3": Llama,
    "phi3": Llama,
    "falcon": Falcon,
}
PREFIXES = "transformer.", "model.decoder.", "decoder.", "model."  # that names have in some checkpoints


class Weights(Mapping[str, npt.NDArray[np.float32]]):
    """The weights of an architecture by name. What is stored otherwise becomes float32 each time that it is asked for."""

    def __init__(self, stored: dict[str, npt.NDArray[Any]]) -> None:
        self.stored = stored  # as in the file: float16 to float64, or uint16, which are the bits of bfloat16

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        array = self.stored[name]
        array = from_bfloat16(array) if array.dtype == np.uint16 else array
        return np.require(array, np.float32, "A")  # a copy, if it is another type or begins at an odd byte

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


class LoadedModel(NamedTuple):
    architecture: Architecture
    weights: Weights  # those of architecture.weights()
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
        ModelError: it cannot be found, is damaged, or is of no known architecture.
    """
    folder = find_folder(model)
    settings = read_json(folder / "config.json")
    wanted = stored_shapes(read_architecture(folder, settings)).keys() | {"lm_head.weight"}
    stored = read_stored(folder, wanted)
    if "lm_head.weight" in stored:  # a head of its own counts, whatever config.json says
        settings |= {"tie_word_embeddings": False}
    architecture = read_architecture(folder, settings)
    weights = read_weights(folder, architecture, stored)
    tokenizer = read_tokenizer(folder)
    if (
        tokenizer and tokenizer.base_vocab_size > architecture.vocab_size
    ):  # tokens added later may lack a row of weights
        file = next(file for file in TOKENIZER_FILES if (folder / file).exists())  # that it was read from
        raise ModelError(
            f"{folder / file} knows {tokenizer.base_vocab_size} tokens, but the model has {architecture.vocab_size}: "
            f"it belongs to another model. Put the model's own {file} there."
        )
    return LoadedModel(architecture, weights, tokenizer, end_tokens(settings, folder, architecture.vocab_size))


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


def read_architecture(folder: Path, settings: dict[str, Any]) -> Architecture:
    """What config.json describes; ModelError if it is of no known architecture, or of a variant that none computes."""
    path, kind = folder / "config.json", settings.get("model_type", "gpt2")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ModelError(
            f"{path} says model_type = {shown(kind)}, but minipage computes only {', '.join(ARCHITECTURES)}. Choose a "
            "model of such an architecture."
        )
    try:
        return ARCHITECTURES[kind].of(settings)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def read_weights(folder: Path, architecture: Architecture, stored: Mapping[str, StoredTensor]) -> Weights:
    """Every weight of the architecture; ModelError if one is missing or of another shape."""
    missing: list[str] = []

    def tensor(name: str, shape: tuple[int, ...]) -> Array:
        if name not in stored:
            missing.append(name)
            return np.broadcast_to(np.float32(0), shape)  # [*shape] that takes no memory, to go on with
        dtype, found, data = stored[name]
        if found != shape:
            raise ModelError(f"{folder}: {name!r} has shape {found}; by config.json it should be {shape}.")
        if dtype not in DTYPES:
            raise ModelError(f"{folder}: {name!r} is stored as {dtype}; minipage reads {', '.join(DTYPES)}.")
        return data.view(DTYPES[dtype]).reshape(shape)

    weights = Weights(dict(architecture.adapt(tensor)))
    if missing:
        raise ModelError(
            f"{folder} lacks {count(len(missing), 'weight')}, {min(missing)!r} first: is it what config.json says, and "
            "complete?"
        )
    return weights


def stored_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this architecture must have."""
    shapes = {}

    def tensor(name: str, shape: tuple[int, ...]) -> Array:
        shapes[name] = shape
        return np.broadcast_to(np.float32(0), shape)  # [*shape] that takes no memory

    for _ in architecture.adapt(tensor):
        pass
    return shapes


def read_stored(folder: Path, wanted: Set[str]) -> dict[str, StoredTensor]:
    """The wanted tensors that a folder has, by their names without a prefix."""

    def is_wanted(name: str) -> bool:
        return plain_name(name) in wanted

    if not any(folder.glob("*.safetensors*")) and any(folder.glob("pytorch_model*.bin")):
        tensors = {name: StoredTensor(*tensor) for name, tensor in read_pytorch_files(folder, is_wanted).items()}
    else:
        tensors = {name: tensor for file in weight_files(folder) for name, tensor in read_safetensors(file).items()}
    return {plain_name(name): tensor for name, tensor in tensors.items() if is_wanted(name)}


def plain_name(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


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
