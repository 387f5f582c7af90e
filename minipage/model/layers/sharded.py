"""Layers of one rank among several: those of any other kind, with its part of the weights, and some talk in between.

    attention   x ─▶ q, k, v of some heads ─▶ attend ─▶ some rows of the output matrix ─▶ part of a sum ─▶ all-reduce
    MLP         x ─▶ some columns ─▶ gelu ──────────▶ the rows that belong to them ─────▶ part of a sum ─▶ all-reduce
    embedding   token ids ─▶ the rows that are here, zeros for the others ──────────────▶ part of a sum ─▶ all-reduce
    head        x ─▶ the scores of some words ─▶ gather, on rank 0

That is all: two all-reduces a layer, each of [T, C]. What has to be added once, a bias or `onto`, rank 0 adds.
Which parts these are, minipage/model/shard.py says.
"""

from __future__ import annotations

from typing import Any, Protocol

from minipage.errors import require
from minipage.model.architecture import Activation, Array, Layers
from minipage.model.shard import Shard


class Talk(Protocol):
    """How ranks talk: all call the same, in the same order. Rank 0 leads."""

    rank: int
    size: int
    graphs: list[Any]  # CUDA graphs of such talk, which end when the ranks leave each other

    def all_reduce(self, part: Array) -> Array:
        """The sum of everybody's part, [...] -> [...], the same in all, perhaps in its memory."""

    def gather(self, part: Array, sizes: list[int]) -> Array:
        """[N, size of this rank] -> on rank 0 all of them side by side, [N, sum of sizes]; elsewhere, anything."""

    def from_leader(self, numbers: Array) -> Array:
        """What rank 0 has, [...] -> [...], perhaps in the memory of `numbers`."""


class ShardedLayers:
    """Layers of a rank.

    Args:
        shard: which part of the weights it has.
        layers: of any kind, with that part.
        talk: with the other ranks.
    """

    def __init__(self, shard: Shard, layers: Layers, talk: Talk, prefix: str = "") -> None:
        self.shard = shard
        self.layers = layers
        self.talk = talk
        self._prefix = prefix
        self._scopes: dict[str, ShardedLayers] = {}
        self._rows: dict[str, slice | None] = {}
        # What needs no talk is what it is.
        self.xp, self.device, self.asarray = layers.xp, layers.device, layers.asarray
        self.linears, self.layer_norm, self.rms_norm = layers.linears, layers.layer_norm, layers.rms_norm
        self.gated, self.gated_linear, self.rotation = layers.gated, layers.gated_linear, layers.rotation
        self.rotate, self.rotate_both = layers.rotate, layers.rotate_both

    def at(self, prefix: str) -> ShardedLayers:
        if prefix not in self._scopes:
            inner = self.layers.at(prefix)
            self._scopes[prefix] = ShardedLayers(self.shard, inner, self.talk, f"{self._prefix}{prefix}.")
        return self._scopes[prefix]

    def rows(self, name: str) -> slice | None:
        if name not in self._rows:
            self._rows[name] = self.shard.rows(self._prefix + name)
        return self._rows[name]

    def embed(self, name: str, ids: Array) -> Array:
        rows = self.rows(name)
        if rows is None:
            return self.layers.embed(name, ids)  # [T, C]
        is_here = (ids >= rows.start) & (ids < rows.stop)  # [T]
        local = self.xp.where(is_here, ids - rows.start, 0)  # [T]
        part = self.xp.where(is_here[:, None], self.layers.embed(name, local), 0)  # [T, C]
        return self.talk.all_reduce(part)  # [T, C]

    def linear(self, name: str, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        if self.rows(name) is None:
            return self.layers.linear(name, x, then, onto)  # [T, out], or some of it
        require(then is None, f"{name} is cut by rows, and what is a part of a sum can go through no function.")
        return self.talk.all_reduce(self.layers.linear(name, x, onto=onto if self.talk.rank == 0 else None))  # [T, out]

    def scores(self, name: str, hidden: Array) -> Array:
        part = self.layers.scores(name, hidden)  # [N, words of this rank]
        if self.rows(name) is None:
            return part  # [N, V]
        parts = (self.shard.rows(self._prefix + name, rank) for rank in range(self.talk.size))
        return self.talk.gather(part, [rows.stop - rows.start for rows in parts if rows])  # [N, V]
