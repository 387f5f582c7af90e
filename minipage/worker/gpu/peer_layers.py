"""Layers of one rank among several GPUs of one host, whose sums of few rows are one kernel with what comes next.

    x ─▶ product ─▶ part of a sum ─▶ all-reduce ─▶ + onto ─▶ norm        three launches, of which two wait for memory
    x ─▶ product ─▶ part of a sum ─▶ [      peer_sums.py        ]        one

An architecture asks for the norm after the sum, when it has x. But the same norm comes after the same sum in every
step: so from the second time on it is made along with the sum, and is there when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from minipage.model.architecture import Activation, Array
from minipage.model.layers.sharded import ShardedLayers
from minipage.model.shard import Shard
from minipage.worker.gpu.fused import FusedLayers, is_in_pieces
from minipage.worker.gpu.peer_sums import Norm, can_add

if TYPE_CHECKING:
    from minipage.worker.gpu.nccl import NCCLGroup


@dataclass
class Sums:
    """What is known of the sums, in all scopes of a model."""

    norms: dict[str, tuple[str, Norm]] = field(default_factory=dict)  # by the matrix: which norm came next, by name
    matrix: str = ""  # of the last sum
    x: Array | None = None  # its result [T, C], until somebody has asked for a norm
    norm: str = ""  # which was made along with it
    h: Array | None = None  # [T, C]


class PeerLayers(ShardedLayers):
    """ShardedLayers on GPUs."""

    layers: FusedLayers
    talk: NCCLGroup

    def __init__(
        self, shard: Shard, layers: FusedLayers, talk: NCCLGroup, prefix: str = "", sums: Sums | None = None
    ) -> None:
        super().__init__(shard, layers, talk, prefix)
        self._sums = sums or Sums()
        self.rms_norm = partial(self._norm, False)
        self.layer_norm = partial(self._norm, True)

    def at(self, prefix: str) -> ShardedLayers:
        if prefix not in self._scopes:
            inner, name = self.layers.at(prefix), f"{self._prefix}{prefix}."
            self._scopes[prefix] = PeerLayers(self.shard, inner, self.talk, name, self._sums)
        return self._scopes[prefix]

    def linear(self, name: str, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        sums, peers = self._sums, self.talk.peers
        sums.x = None
        if self.rows(name) is None or onto is None or peers is None or not can_add(onto):
            return super().linear(name, x, then, onto)
        matrix = self._prefix + name
        part = self.layers.linear(name, x)  # [T, out]
        following, norm = sums.norms.get(matrix, ("", None))
        h = peers.add_onto(onto, part, norm)  # [T, out]
        sums.matrix, sums.x, sums.norm, sums.h = matrix, onto, following, h
        return onto  # [T, out]

    def _norm(self, is_centered: bool, name: str, x: Array, epsilon: float) -> Array:
        sums, full_name = self._sums, self._prefix + name
        if sums.x is x:
            sums.x = None
            if sums.norm == full_name:
                return sums.h  # [T, C]
            weight, bias = self.layers._parts[name]  # [C] each
            if is_in_pieces(x, weight):
                sums.norms[sums.matrix] = full_name, Norm(weight, bias if is_centered else None, epsilon, is_centered)
        plain = self.layers.layer_norm if is_centered else self.layers.rms_norm
        return plain(name, x, epsilon)  # [..., C]
