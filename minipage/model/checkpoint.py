"""Find a model, read its weights, check that they are what `config.json` says.

A model is a folder in the layout that Hugging Face uses:

    config.json              which architecture it is, and its sizes
    generation_config.json   may name more tokens that end a text
    model.safetensors        the weights, or several files and a model.safetensors.index.json that lists them
    tokenizer.json           the tokenizer, or vocab.json and merges.txt; without it, prompts must be token ids

Published weights come in several small variations: names with or without a leading `transformer.`, fp32, fp16 or bf16,
the causal masks stored along with them. All are read here; stored_weights.py says how.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from importlib import import_module
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from minipage.errors import ConfigurationError, ModelError, count, shown
from minipage.model.architecture import Architecture, Array
from minipage.model.pytorch_files import read_pytorch_files
from minipage.model.settings import (
    end_tokens,
    read_json,
    refuse_other,
    token_ids_in,
    warn_of_unknown,
    why,
    with_overrides,
)
from minipage.model.stored_weights import DummyWeights, Place, StoredTensor, Weights
from minipage.model.tokenizer import Tokenizer
from minipage.model.tokenizer_files import TOKENIZER_FILES, read_tokenizer

SHIPPED_MODEL = "shakespeare"  # the one in minipage/assets, trained by minipage/train
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # what safetensors calls them, and how to read them

# By what config.json calls their model_type: file and class in this folder, or a class.
ARCHITECTURES: dict[str, str | type[Architecture]] = {
    "gpt2": "gpt2.GPT2",
    "opt": "opt.OPT",
    "llama": "llama.Llama",
    "mistral": "llama.Llama",
    "qwen2": "llama.Llama",
    "qwen3": "llama.Llama",
    "phi3": "llama.Llama",
    "falcon": "falcon.Falcon",
}
LOAD_FORMATS = "auto", "dummy"
PREFIXES = "transformer.", "model.decoder.", "decoder.", "model."  # that names have in some checkpoints


class LoadedModel(NamedTuple):
    architecture: Architecture
    weights: Weights  # those of architecture.weights()
    tokenizer: Tokenizer | None  # None: the folder has none
    eos_token_ids: frozenset[int]  # tokens that end a text


def load_model(
    model: str | Path, load_format: str = "auto", hf_overrides: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Load the shipped model, a folder, a GGUF file, or a model of the Hugging Face hub such as "gpt2" or "smollm2".

    Weights are read when they are first used, and those that are stored as float32 are not copied. So the file may be
    replaced while they are in use, but not written to.

    Args:
        load_format: "auto", or "dummy" for random weights of the sizes in config.json; no file of weights is needed.
        hf_overrides: settings that count instead of those in config.json. Of one that neither config.json nor the
            architecture knows, a warning says that it has no effect.

    Raises:
        ModelError: it cannot be found, is damaged, or is of no known architecture.
    """
    if not isinstance(load_format, str) or load_format not in LOAD_FORMATS:
        raise ConfigurationError(f"load_format is {shown(load_format)}; it must be one of {', '.join(LOAD_FORMATS)}.")
    if not isinstance(hf_overrides, Mapping | None):
        raise ConfigurationError(f"hf_overrides is {shown(hf_overrides)}; give settings of config.json, as a dict.")
    is_dummy = load_format == "dummy"
    path = (file := gguf_file(model)) or find_folder(model, with_weights=not is_dummy)
    try:
        if not file:
            return load_folder(path, is_dummy, hf_overrides or {})
        loaded = load_gguf(path, hf_overrides or {})
        return loaded._replace(weights=DummyWeights(loaded.architecture)) if is_dummy else loaded
    except ModelError as error:
        if not hf_overrides:
            raise
        raise ModelError(f"{error}{perhaps(hf_overrides)}") from error


def perhaps(hf_overrides: Mapping[str, Any]) -> str:
    """What else may be at fault, if something is."""
    return f" Or is it the fault of hf_overrides, {shown(dict(hf_overrides))}?" if hf_overrides else ""


def load_folder(folder: Path, is_dummy: bool, hf_overrides: Mapping[str, Any]) -> LoadedModel:
    given = read_json(folder / "config.json")
    settings = with_overrides(given, hf_overrides)
    architecture = read_architecture(folder / "config.json", settings)
    if is_dummy:
        weights: Weights = DummyWeights(architecture)
    else:
        stored = read_stored(folder, stored_shapes(architecture).keys() | {"lm_head.weight"})
        if "lm_head.weight" in stored:  # a head of its own counts, whatever config.json says
            settings["tie_word_embeddings"] = False
            architecture = read_architecture(folder / "config.json", settings)
        try:
            weights = read_weights(folder, architecture, stored)
        except ModelError as error:
            if not settings.get("quantization_config"):  # which may be left from training, beside weights as they were
                raise
            raise ModelError(
                f"{folder} has weights that are quantized, as its config.json says; minipage reads such weights from "
                "GGUF files alone. Choose the model in bfloat16 or float16, or a GGUF file of it."
            ) from error
    tokenizer = read_tokenizer(folder)
    if tokenizer:
        file = next(folder / file for file in TOKENIZER_FILES if (folder / file).exists())  # that it was read from
        check_vocabulary(tokenizer, architecture, file)
        from minipage.model.chat_template import find_chat_template  # a file of its own for those who chat

        tokenizer.chat_template = find_chat_template(folder)
    ends = end_tokens(settings, folder, architecture.vocab_size)
    warn_of_unknown(hf_overrides, given, settings)
    return LoadedModel(architecture, weights, tokenizer, ends)


def load_gguf(path: Path, hf_overrides: Mapping[str, Any]) -> LoadedModel:
    from minipage.model.gguf_files import read_gguf

    file = read_gguf(path)
    settings = with_overrides(file.config, hf_overrides)
    architecture = read_architecture(path, settings)
    names = {plain_name(name): name for name in file.weights}

    def tensor(name: str, shape: tuple[int, ...]) -> Array:
        if (plain := plain_name(name)) not in names:
            raise ModelError(f"{path} lacks the weight {name!r}. Fetch it again.{perhaps(hf_overrides)}")
        found = file.weights.shape(names[plain])
        if found != shape:
            wrong = f"{name!r} has shape {found}; by its sizes it should be {shape}"
            raise ModelError(f"{path}: {wrong}.{perhaps(hf_overrides)}")
        return file.weights[names[plain]]

    if file.tokenizer:
        check_vocabulary(file.tokenizer, architecture, path)
        file.tokenizer.chat_template = file.chat_template
    ends = frozenset(token_ids_in(settings.get("eos_token_id"), path))
    warn_of_unknown(hf_overrides, file.config, settings)
    return LoadedModel(architecture, Weights(architecture, tensor), file.tokenizer, ends)


def describe_model(
    model: str | Path, hf_overrides: Mapping[str, Any] | None = None
) -> tuple[Architecture, Tokenizer | None]:
    """What `load_model` would load, without the weights."""
    overrides = hf_overrides or {}
    if path := gguf_file(model):
        from minipage.model.gguf_files import read_gguf

        file = read_gguf(path)
        return read_architecture(path, with_overrides(file.config, overrides)), file.tokenizer
    folder = find_folder(model, with_weights=False)
    path = folder / "config.json"
    return read_architecture(path, with_overrides(read_json(path), overrides)), read_tokenizer(folder)


def check_vocabulary(tokenizer: Tokenizer, architecture: Architecture, file: Path) -> None:
    if tokenizer.base_vocab_size > architecture.vocab_size:  # tokens that were added later may lack a row of weights
        raise ModelError(
            f"{file} knows {tokenizer.base_vocab_size} tokens, but the model has {architecture.vocab_size}: "
            f"it belongs to another model. Put the model's own {file.name} there."
        )


def gguf_file(model: str | Path) -> Path | None:
    """The GGUF file of this name, if it is one: the path of a file, or a model that comes as a Python package."""
    if not isinstance(model, str | PathLike):
        return None
    from minipage.model.gguf_files import packaged_model

    path = packaged_model(str(model)) or Path(model)
    return path if path.suffix == ".gguf" and not path.is_dir() else None


def find_folder(model: str | Path, with_weights: bool = True) -> Path:
    """The folder of a model: the shipped one's, the named one, or a download from the hub (kept in the hub's cache)."""
    hint = (
        "Give a folder with config.json, model.safetensors and tokenizer.json, a GGUF file, the name of a model on the "
        f"hub, {SHIPPED_MODEL!r}, or 'smollm2'."
    )
    if not isinstance(model, str | PathLike) or not (name := str(model)):
        raise ModelError(f"model is {shown(model)}. {hint}")
    if model == SHIPPED_MODEL:
        return Path(__file__).parent.parent / "assets" / SHIPPED_MODEL
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            refuse_parts_of_models(folder)
            return folder
        is_file = folder.exists()
    except PermissionError as error:
        raise ModelError(f"{name!r} cannot be read: {error.strerror}. {hint}") from error
    except (OSError, RuntimeError):  # no path can be like this: too long, or of a user who has no home
        is_file = False
    if is_file:
        raise ModelError(f"{name!r} is a file, and no folder. {hint}")
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name or "\0" in name:
        raise ModelError(f"there is no folder {name!r}. {hint}")

    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    files = ["config.json", "generation_config.json", *TOKENIZER_FILES]
    files += ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"]
    files += ["*.safetensors", "*.safetensors.index.json"] * with_weights
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = f"there is no folder {name!r}, and it could not be fetched from the hub: {reason.rstrip('.')}. {hint}"
        raise ModelError(message) from error


def refuse_parts_of_models(folder: Path) -> None:
    """Raise ModelError if it holds no config.json, and say what it holds instead, if people take that for a model."""
    if (folder / "config.json").exists():
        return
    if files := sorted(folder.glob("*.gguf")):
        raise ModelError(f"{folder} holds GGUF files and no config.json. Give the file itself: {str(files[0])!r}.")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter and no model. Merge it into its model, with merge_and_unload() of the package "
            "peft, save that, and give its folder."
        )
    raise ModelError(f"{folder} holds no config.json, so it is no folder of a model. Give the one that holds it.")


def read_architecture(path: Path, settings: dict[str, Any]) -> Architecture:
    """What the settings of a file describe; ModelError if no architecture computes that."""
    kind = settings.get("model_type", "gpt2" if "n_embd" in settings else None)  # early GPT-2s did not say it
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise ModelError(
            f"{path} says model_type = {shown(kind)}, but minipage computes only {', '.join(ARCHITECTURES)}. Choose a "
            "model of such an architecture."
        )
    try:
        refuse_other(settings, {"is_causal": (True,)}, "a model whose tokens see those before them alone")
        return architecture_class(ARCHITECTURES[kind]).of(settings)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def architecture_class(found: str | type[Architecture]) -> type[Architecture]:
    if not isinstance(found, str):
        return found
    file, _, name = found.partition(".")
    cls: type[Architecture] = getattr(import_module(f"minipage.model.{file}"), name)
    return cls


def read_weights(folder: Path, architecture: Architecture, stored: Mapping[str, StoredTensor]) -> Weights:
    """Every weight of the architecture; ModelError if one is missing or of another shape."""
    shapes = stored_shapes(architecture)
    if missing := [name for name in shapes if name not in stored]:
        raise ModelError(
            f"{folder} lacks {count(len(missing), 'weight')}, {min(missing)!r} first: is it what config.json says, and "
            "complete?"
        )
    further = [name for name in stored if name not in shapes and f"{name.rpartition('.')[0]}.weight" in stored]
    if unknown := [name for name in further if name != "lm_head.weight"]:
        raise ModelError(
            f"{folder} has {count(len(unknown), 'weight')} that minipage cannot place in a model as config.json "
            f"describes it, {min(unknown)!r} first: is that file its own?"
        )
    for name, shape in shapes.items():
        dtype, found, _ = stored[name]
        if found != shape:
            raise ModelError(f"{folder}: {name!r} has shape {found}; by config.json it should be {shape}.")
        if dtype not in DTYPES:
            raise ModelError(f"{folder}: {name!r} is stored as {dtype}; minipage reads {', '.join(DTYPES)}.")

    def tensor(name: str, shape: tuple[int, ...]) -> Array:
        found = stored[plain_name(name)]
        return found.data.view(DTYPES[found.dtype]).reshape(shape)

    return Weights(architecture, tensor)


def stored_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this architecture must have."""
    shapes = {}

    def tensor(name: str, shape: tuple[int, ...]) -> Array:
        shapes[plain_name(name)] = shape
        return np.broadcast_to(np.float32(0), shape)  # [*shape] that takes no memory

    for _ in architecture.adapt(tensor):
        pass
    return shapes


def read_stored(folder: Path, wanted: Set[str]) -> dict[str, StoredTensor]:
    """The wanted tensors that a folder has, and what else is in their blocks, by their names without a prefix."""
    blocks = {block_of(name) for name in wanted} - {""}

    def is_wanted(name: str) -> bool:
        plain = plain_name(name)
        return plain in wanted or (block_of(plain) in blocks and plain.endswith((".weight", ".bias")))

    is_safe = any((folder / file).exists() for file in (WHOLE, INDEX))
    if not is_safe and any(folder.glob("pytorch_model*.bin")):
        tensors = {name: StoredTensor(*tensor) for name, tensor in read_pytorch_files(folder, is_wanted).items()}
    else:
        tensors = {name: tensor for file in weight_files(folder) for name, tensor in read_safetensors(file).items()}
    names: dict[str, str] = {}
    for name in filter(is_wanted, tensors):
        if (other := names.setdefault(plain_name(name), name)) != name:
            raise ModelError(
                f"{folder} has both {other!r} and {name!r}, of which only one can count. Remove the other."
            )
    return {plain: tensors[name] for plain, name in names.items()}


def plain_name(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def block_of(name: str) -> str:
    """layers.3 of layers.3.mlp.up_proj.weight; empty outside of the blocks."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdecimal() else ""


def weight_files(folder: Path) -> list[Path]:
    """Where the weights are. An index is old or of another set of weights, if there is a whole file beside it."""
    whole, index = folder / WHOLE, folder / INDEX
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
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{path} is missing or damaged ({why(path, error)}). Fetch it again.") from error
    header.pop("__metadata__", None)
    first = 8 + header_size  # byte of the data
    return {
        name: StoredTensor(each["dtype"], tuple(each["shape"]), Place(path, *(first + n for n in each["data_offsets"])))
        for name, each in header.items()
    }
