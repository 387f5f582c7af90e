"""One rank's part of a model: which heads, which columns and rows, of what the architecture says beside each shape.

    split="out"    each rank has some columns    q, k, v of some heads; some numbers inside the MLP
    split="in"     each rank has some rows       what is made of these, a part of a sum; some words of the vocabulary
    split=None     everybody has all of it       norms, positions

    5 words, 2 ranks     9 heads, 3 of K and V, 2 ranks     ... and 4 ranks: two have the same head of K and V
    rank 0   0 1         q 0 1 2        kv 0                q 0   kv 0      rank 2   q 3 4 5  kv 1
    rank 1   2 3 4       q 3 4 5 6 7 8  kv 1 2              q 1 2 kv 0      rank 3   q 6 7 8  kv 2

Nothing has to divide anything: a rank may have more than another. A head is never cut, so that each rank can attend by
itself; and where K and V have fewer heads than there are ranks, several ranks keep the same one.

Shoeybi et al., "Megatron-LM" (arXiv 1909.08053); the paper on PagedAttention, section 4.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minipage.errors import ConfigurationError
from minipage.model.architecture import Architecture, Array, Attend, KVSpec, Layers, Tensors, Weight


def share(number: int, rank: int, size: int) -> slice:
    """Which of `number` things one of `size` ranks has."""
    return slice(rank * number // size, (rank + 1) * number // size)


def heads_of(rank: int, size: int, num_heads: int, num_kv_heads: int) -> tuple[slice, slice]:
    """Which heads a rank has: of q, and of K and V."""
    heads_per_kv = num_heads // num_kv_heads  # heads of q that read the same K and V
    if size <= num_kv_heads:
        kv = share(num_kv_heads, rank, size)
        return slice(kv.start * heads_per_kv, kv.stop * heads_per_kv), kv
    head = rank * num_kv_heads // size
    ranks = [each for each in range(size) if each * num_kv_heads // size == head]  # that have this head of K and V
    part = share(heads_per_kv, ranks.index(rank), len(ranks))
    return slice(head * heads_per_kv + part.start, head * heads_per_kv + part.stop), slice(head, head + 1)


class Shard:
    """An architecture as one of `size` ranks sees it: the same names and the same order, fewer heads, columns, rows.

    Raises:
        ConfigurationError: it cannot be cut into this many parts.
    """

    def __init__(self, architecture: Architecture, rank: int, size: int) -> None:
        check_size(architecture, size)
        self.whole = architecture
        self.rank = rank
        self.size = size
        self.q_heads, self.kv_heads = heads_of(rank, size, architecture.num_heads, architecture.kv.num_kv_heads)
        self.specs = dict(architecture.weights())
        self.together = architecture.together
        self.head = architecture.head

    def __getattr__(self, name: str) -> Any:
        if name == "whole":  # a copy that is being made has nothing yet
            raise AttributeError(name)
        return getattr(self.whole, name)

    @property
    def vocab_size(self) -> int:
        return self.whole.vocab_size

    @property
    def max_model_len(self) -> int:
        return self.whole.max_model_len

    @property
    def num_heads(self) -> int:
        return int(self.q_heads.stop - self.q_heads.start)

    @property
    def kv(self) -> KVSpec:
        return self.whole.kv._replace(num_kv_heads=self.kv_heads.stop - self.kv_heads.start)

    def weights(self) -> Iterator[tuple[str, Weight]]:
        for name, spec in self.specs.items():
            if self.rank == 0 or not self.is_added(name):
                yield name, spec._replace(shape=self.shape(spec))

    def is_added(self, name: str) -> bool:
        """Whether it is the bias of rows, whose products are added up: it must be added once, and rank 0 does it."""
        matrix = self.specs.get(f"{name.removesuffix('.bias')}.weight")
        return name.endswith(".bias") and matrix is not None and matrix.split == "in"

    def place(self, spec: Weight, rank: int | None = None) -> tuple[slice, ...]:
        """Where in a weight the part of a rank is, this one's or another's: a slice for each axis."""
        everything = (slice(None),) * len(spec.shape)
        if spec.split is None:
            return everything
        n = spec.shape[-1] if spec.split == "out" else spec.shape[0]
        rank = self.rank if rank is None else rank
        if spec.heads is None:
            part = share(n, rank, self.size)
        else:
            q, kv = heads_of(rank, self.size, self.whole.num_heads, self.whole.kv.num_kv_heads)
            heads, num_heads = (q, self.whole.num_heads) if spec.heads == "q" else (kv, self.whole.kv.num_kv_heads)
            part = slice(heads.start * n // num_heads, heads.stop * n // num_heads)
        return (*everything[1:], part) if spec.split == "out" else (part, *everything[1:])

    def shape(self, spec: Weight) -> tuple[int, ...]:
        return tuple(len(range(*part.indices(n))) for part, n in zip(self.place(spec), spec.shape))

    def part(self, name: str, weight: Array) -> Array:
        """This rank's part of a whole weight: a view, so that of a file only this part is read."""
        return weight[self.place(self.specs[name])]

    def rows(self, name: str, rank: int | None = None) -> slice | None:
        """Which rows of a matrix or a table a rank has; None: everybody has all of them."""
        spec = self.specs[f"{name}.weight"]
        return self.place(spec, rank)[0] if spec.split == "in" else None

    def forward(self, layers: Layers, token_ids: Array, positions: Array, attend: Attend) -> Array:
        return self.whole.forward(layers, token_ids, positions, attend)

    def logits(self, layers: Layers, hidden: Array) -> Array:
        return self.whole.logits(layers, hidden)

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Any:
        raise NotImplementedError("a shard is made of an architecture, and not read from a file")

    def adapt(self, tensors: Tensors) -> Iterator[tuple[str, Array]]:
        return ((name, self.part(name, weight)) for name, weight in self.whole.adapt(tensors))


def check_size(architecture: Architecture, size: int) -> None:
    num_heads, num_kv_heads = architecture.num_heads, architecture.kv.num_kv_heads
    if size > num_heads:
        raise ConfigurationError(
            f"tensor_parallel_size is {size}, but the model has {num_heads} heads, of which every rank needs one. "
            f"Choose at most {num_heads}."
        )
    says_heads = any(spec.heads for _, spec in architecture.weights())
    if not says_heads and (num_heads % size or num_kv_heads % size):
        raise ConfigurationError(
            f"tensor_parallel_size is {size}, which does not divide {num_heads} heads and {num_kv_heads} of K and V; "
            f"{type(architecture).__name__} must say which weights belong to heads: Weight(..., heads='q') or 'kv'."
        )
    for name, spec in architecture.weights():
        n = 0 if spec.split is None else spec.shape[-1] if spec.split == "out" else spec.shape[0]
        if spec.split and n < size:
            raise ConfigurationError(f"tensor_parallel_size is {size}, but {name} has only {n} to share. Choose less.")
