"""The weights of a model, one at a time: none is read before it is asked for, and none stays that nobody keeps.

checkpoint    [ float16, bfloat16, ... in files ] ─▶ stored ─▶ items         float32, for NumPy
                                                      └─▶ place.py           in their own type, to the device
load_format="dummy"    no file: random numbers
"""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from copy import copy
from hashlib import sha256
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from minipage.errors import ModelError
from minipage.model.architecture import Architecture, Tensors
from minipage.simd.halves import from_bfloat16

SAMPLES = 4096  # numbers of each weight that are compared
SMALL = 2**16  # bytes
SPREAD = 0.02  # standard deviation of random weights: what GPT-2 was initialized with; small enough for float16


class Weights(Mapping[str, npt.NDArray[np.float32]]):
    """The weights of an architecture, by name, as float32.

    Each is taken from the checkpoint again whenever it is asked for. What is stored as float32 is not copied.
    """

    def __init__(self, architecture: Architecture, tensors: Tensors) -> None:
        self._architecture = architecture
        self._tensors = tensors
        self.part: Callable[[str, Any], Any] = whole

    def only(self, part: Callable[[str, Any], Any]) -> Self:
        """Only a part of each: part(name, array) -> a view of it."""
        some = copy(self)
        some.part = part
        return some

    def stored(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """All of them as the checkpoint has them: float16 to float64, or uint16, which are the bits of bfloat16."""
        return ((name, self.part(name, array)) for name, array in self._architecture.adapt(self._tensors))

    def __getitem__(self, name: str) -> npt.NDArray[np.float32]:
        for each, array in self.stored():
            if each == name:
                return as_float32(array)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._architecture.weights())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def items(self) -> ItemsView[str, npt.NDArray[np.float32]]:
        return Items(self)

    def values(self) -> ValuesView[npt.NDArray[np.float32]]:
        return Values(self)


class Items(ItemsView[str, npt.NDArray[np.float32]]):
    """In one pass, and not each from the beginning."""

    _mapping: Weights

    def __iter__(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        return ((name, as_float32(array)) for name, array in self._mapping.stored())


class Values(ValuesView[npt.NDArray[np.float32]]):
    _mapping: Weights

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return (array for _, array in self._mapping.items())


class DummyWeights(Weights):
    """Random weights, the same every time: of norms around 1, and of all else around 0."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture, no_tensors)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...], float]]:
        """Name, shape and mean of each."""
        for name, weight in self._architecture.weights():
            is_norm = len(weight.shape) == 1 and name.endswith(".weight")
            yield name, weight.shape, float(is_norm)

    def stored(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        rng = np.random.default_rng(0)
        for name, shape, mean in self.shapes():
            array = rng.standard_normal(shape, np.float32)  # [...]
            array *= np.float32(SPREAD)
            array += np.float32(mean)
            yield name, self.part(name, array)


def whole(name: str, array: Any) -> Any:
    return array


def no_tensors(name: str, shape: tuple[int, ...]) -> Any:
    raise ModelError(f"random weights come from no file, so there is no {name!r} of {shape}.")


def hash_of(weights: Weights) -> str:
    """Of every weight its name, its shape, and some thousand numbers from all over it."""
    digest = sha256()
    if isinstance(weights, DummyWeights):
        return "random"
    for name, array in weights.stored():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        if array.size:
            flat = np.linspace(0, array.size - 1, min(array.size, SAMPLES)).astype(np.int64)  # [SAMPLES or fewer]
            digest.update(array[np.unravel_index(flat, array.shape)].tobytes())
    return digest.hexdigest()[:16]


def as_float32(array: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """[...] as a checkpoint has it -> [...]; a copy, if it is of another type or begins at an odd byte."""
    return np.require(from_bfloat16(array) if array.dtype == np.uint16 else array, np.float32, "A")


class StoredTensor(NamedTuple):
    """A tensor as it lies in a file, or, if it was read already, in memory."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    place: Place | npt.NDArray[np.uint8]  # [num_bytes]

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """[num_bytes]"""
        return self.place.map() if isinstance(self.place, Place) else self.place


class Place(NamedTuple):
    """Some bytes of a file."""

    path: Any  # pathlib.Path
    start: int
    stop: int

    def map(self) -> npt.NDArray[np.uint8]:
        """[num_bytes], which the system reads when they are looked at, and forgets when nobody has this array any more.

        So the memory of a process that goes through a large checkpoint grows by one tensor at a time. Small ones are
        read at once: what is mapped keeps its file open, and a process may have a thousand files open.
        """
        num_bytes = self.stop - self.start
        try:
            if num_bytes <= SMALL:
                array = np.fromfile(self.path, np.uint8, num_bytes, offset=self.start)  # [num_bytes or fewer]
                if len(array) < num_bytes:
                    raise ValueError("it is shorter now")
                return array
            # "c": what is written stays with us.
            return np.asarray(np.memmap(self.path, np.uint8, "c", self.start, (num_bytes,)))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{self.path} was removed or changed while it was read ({error}). Load it again."
            ) from error
