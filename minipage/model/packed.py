"""Weights that are kept in another order than their names promise, and put back when somebody asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from minipage.model.gpt import Array


class PackedWeights(Mapping[str, Array]):
    """The weights of a GPT by name. Those in `unpack` are made anew, as copies, each time that they are asked for."""

    def __init__(self, weights: Mapping[str, Array], unpack: Mapping[str, Callable[[], Array]]) -> None:
        self._kept = {name: weight for name, weight in weights.items() if name not in unpack}
        self._unpack = unpack

    def __getitem__(self, name: str) -> Array:
        return self._unpack[name]() if name in self._unpack else self._kept[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._kept
        yield from self._unpack

    def __len__(self) -> int:
        return len(self._kept) + len(self._unpack)
