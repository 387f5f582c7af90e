"""How a GGUF file begins: what its author says of the model, and where each tensor lies.

    magic "GGUF", version, number of tensors, number of entries
    entries   a key, a type, a value: sizes, the tokenizer's words, the chat template, ...
    tensors   a name, a shape, a type, an offset
    data      from the next multiple of `general.alignment` on

All of it is little-endian. Since all of a model is in this one file, nothing else has to be found or fetched.
The format is described in ggml's docs/gguf.md. The `gguf` package has a reader, too, which makes an array of every word
of the vocabulary: that is 2 s for SmolLM2, where this takes a tenth.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from minipage.errors import ModelError, count, shown
from minipage.model.settings import why

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # they are written alike; version 1 had other sizes, and is gone since 2023
DEFAULT_ALIGNMENT = 32
MOST_DIMENSIONS = 4

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # as struct does
STRING, ARRAY = 8, 9


class TensorPlace(NamedTuple):
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]  # as NumPy counts: the last axis lies side by side
    type_id: int  # gguf.GGMLQuantizationType
    offset: int  # bytes from the beginning of the file


SIZE = struct.Struct("<Q")  # the length of a text, before its bytes


class Header(NamedTuple):
    metadata: dict[str, Any]  # numbers, texts, and lists of them
    tensors: dict[str, TensorPlace]


def read_header(path: Path) -> Header:
    """Read the beginning of a GGUF file.

    Raises:
        ModelError: there is no such file, or it is none of GGUF, or it ends too early.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return Cursor(content).header()
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not a readable GGUF file ({why(path, error)}). Fetch it again.") from error
    except (IndexError, struct.error, MemoryError, OverflowError) as error:
        raise ModelError(f"{path} ends before all that it announces: only a part is there. Fetch it again.") from error


class Cursor:
    """Reads one value after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.position = 0

    def header(self) -> Header:
        if self.take(len(MAGIC)) != MAGIC:
            raise ValueError("it does not begin with the letters GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            raise ValueError(f"it is of version {version}; minipage reads {' and '.join(map(str, VERSIONS))}")
        num_tensors, num_entries = self.number("Q"), self.number("Q")
        metadata = dict(self.entry() for _ in range(num_entries))
        tensors = dict(self.tensor() for _ in range(num_tensors))
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {shown(alignment)}")
        start = -(-self.position // alignment) * alignment  # of the data: offsets count from here
        tensors = {name: place._replace(offset=start + place.offset) for name, place in tensors.items()}
        return Header(metadata, tensors)

    def entry(self) -> tuple[str, Any]:
        name = self.text()
        return name, self.value(self.number("I"))

    def value(self, type_id: int) -> Any:
        if type_id == STRING:
            return self.text()
        if type_id == ARRAY:
            return self.array()
        if type_id not in NUMBERS:
            raise ValueError(f"it has a value of a type that is not known, {type_id}")
        return self.number(NUMBERS[type_id])

    def array(self) -> list[Any]:
        type_id, length = self.number("I"), self.number("Q")
        if type_id in NUMBERS:
            form = f"<{length}{NUMBERS[type_id]}"
            return list(struct.unpack(form, self.take(struct.calcsize(form))))
        if type_id == STRING:
            return self.texts(length)
        return [self.value(type_id) for _ in range(length)]

    def tensor(self) -> tuple[str, TensorPlace]:
        name = self.text()
        num_dimensions = self.number("I")
        if num_dimensions > MOST_DIMENSIONS:
            raise ValueError(f"{shown(name)} has {count(num_dimensions, 'dimension')}")
        shape = tuple(self.number("Q") for _ in range(num_dimensions))[::-1]  # GGUF says the innermost first
        return name, TensorPlace(shape, type_id=self.number("I"), offset=self.number("Q"))

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def texts(self, length: int) -> list[str]:
        """Many texts, one after the other. A vocabulary has 100,000 of them, so they are read without detours."""
        content, start, end = self.content, self.position, len(self.content)
        texts = []
        for _ in range(length):
            (num_bytes,) = SIZE.unpack_from(content, start)
            start += SIZE.size + num_bytes
            if start > end:
                raise IndexError("past the end of the file")
            texts.append(content[start - num_bytes : start].decode("utf-8", "replace"))
        self.position = start
        return texts

    def number(self, form: str) -> Any:
        (number,) = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))
        return number

    def take(self, num_bytes: int) -> bytes:
        end = self.position + num_bytes
        if end > len(self.content):
            raise IndexError("past the end of the file")
        self.position, beginning = end, self.position
        return self.content[beginning:end]
