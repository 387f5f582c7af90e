"""Every operation of a model in the array API: for NumPy, CuPy and PyTorch, on any device.

The other kinds of layers begin as this one does, are tested against it, and change what they do better: how a matrix is
kept and multiplied (`kept`, `kept_head`), and single operations.

    weights, by name   attn.q.weight  attn.k.weight  attn.v.weight  attn.q.bias ...    attn.c_proj.weight ...
    what is kept       ("attn.q", "attn.k", "attn.v"): [ q | k | v ], one matrix       "attn.c_proj": another
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Self, TypeAlias

from array_api_compat import array_namespace, device

from minipage.errors import require
from minipage.model.architecture import Activation, Architecture, Array, Turn
from minipage.model.layers.activations import gelu_exact, relu

KINDS = "weight", "bias"
Name: TypeAlias = str | tuple[str, ...]  # of one layer, or of several side by side


class Part(NamedTuple):
    """A norm, or a table."""

    weight: Array  # [C], or [V, C]
    bias: Array | None  # [C]


class Linear:
    def __init__(self, weight: Array, bias: Array | None) -> None:
        self.weight = weight  # [in, out]
        self.bias = bias  # [out]

    def __call__(self, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        x = x @ self.weight  # [T, in] -> [T, out]
        x = x if self.bias is None else x + self.bias  # [T, out]
        x = x if then is None else ACTIVATIONS[then](x)  # [T, out]
        return x if onto is None else onto + x  # [T, out]


class PlainLayers:
    """Layers of any array library.

    Args:
        architecture: whose weights these are.
        weights: a mapping, or pairs; arrays of one library on one device, all of one float dtype. Matrices that are
            laid side by side are copied, and so may others be: to save memory, do not keep the originals.
    """

    def __init__(self, architecture: Architecture, weights: Mapping[str, Array] | Iterable[tuple[str, Array]]) -> None:
        specs = dict(architecture.weights())
        self._parts: dict[Name, Any] = {}  # what is kept of each layer
        self._widths: dict[Name, list[int]] = {}  # of matrices side by side
        self._columns: dict[Name, list[slice]] = {}  # where each of them is
        self._heads: dict[Name, Callable[[Array], Array]] = {}
        self._frequencies: dict[tuple[float, ...], Array] = {}
        self._scopes: dict[str, Self] = {}
        for names, given in self._in_groups(weights, specs, architecture.together):
            self._keep(names, given, names == (architecture.head,), specs[f"{names[0]}.weight"].is_table)

    def _keep(self, names: tuple[str, ...], given: dict[str, Array], is_head: bool, is_table: bool) -> None:
        """A layer, or several side by side, of which nobody else has the weights."""
        matrices = [given.pop(f"{name}.weight") for name in names]
        biases = list(given.values())
        require(len(biases) in (0, len(names)), f"of {', '.join(names)} all must have a bias, or none.")
        bias = self._joined(biases) if biases else None
        if is_head:
            self._heads[names[0]] = self.kept_head(matrices[0])
        if is_table or matrices[0].ndim == 1:
            self._parts[names[0]] = Part(matrices[0], bias)
        elif not is_head:
            key = names if len(names) > 1 else names[0]
            self._widths[key] = [matrix.shape[1] for matrix in matrices]
            ends = [0, *accumulate(self._widths[key])]
            self._columns[key] = [slice(start, end) for start, end in pairwise(ends)]
            self._parts[key] = self.kept(self._joined(matrices), bias)

    def _in_groups(
        self, weights: Mapping[str, Array] | Iterable[tuple[str, Array]], specs: Mapping[str, Any], together: Any
    ) -> Iterator[tuple[tuple[str, ...], dict[str, Array]]]:
        """The layers, those side by side together, each with its weights, as soon as all of them have come."""
        came: dict[str, Array] = {}
        missing = {name: spec.shape for name, spec in specs.items()}
        for name, weight in weights.items() if isinstance(weights, Mapping) else weights:
            if name not in missing:
                continue
            self.check(name, weight, missing.pop(name))
            self._compute_as(weight)
            came[name] = weight
            names = side_by_side(name.rpartition(".")[0], together)
            wanted = [f"{each}.{kind}" for kind in KINDS for each in names if f"{each}.{kind}" in specs]
            if all(each in came for each in wanted):
                yield names, {each: came.pop(each) for each in wanted}
        for name, shape in missing.items():
            self.check(name, None, shape)

    def _compute_as(self, some: Array) -> None:
        self.xp: Any = array_namespace(some)
        self.device: Any = device(some)
        self._dtype = some.dtype
        self._wide = self.xp.float64 if some.dtype == self.xp.float64 else self.xp.float32  # what sums are made in

    def _joined(self, arrays: list[Array]) -> Array:
        return arrays[0] if len(arrays) == 1 else self.xp.concat(arrays, axis=-1)  # [..., out of all]

    def check(self, name: str, weight: Array | None, shape: tuple[int, ...]) -> None:
        found = None if weight is None else tuple(weight.shape)
        require(found == shape, lambda: f"the weight {name} must be there, as {shape}; it is {found}.")

    def kept(self, weight: Array, bias: Array | None) -> Callable[..., Array]:
        """The layer of a matrix [in, out], as `linear` calls it: with x, with `then`, and with `onto`."""
        return Linear(weight, bias)

    def kept_head(self, table: Array) -> Callable[[Array], Array]:
        """What turns hidden states [N, C] into scores [N, V], for a table [V, C]."""
        return Linear(table.T, None)

    def at(self, prefix: str) -> Self:
        scope = self._scopes.get(prefix)
        if scope is None:
            scope = self._scopes[prefix] = self._scope(f"{prefix}.")
        return scope

    def _scope(self, prefix: str) -> Self:
        scope = copy(self)
        scope._parts = dict(without(prefix, self._parts))
        scope._widths = dict(without(prefix, self._widths))
        scope._columns = dict(without(prefix, self._columns))
        scope._scopes = {}
        return scope

    def asarray(self, numbers: Array) -> Array:
        return self.xp.asarray(numbers, device=self.device)  # [...]

    # ---- the operations

    def embed(self, name: str, ids: Array) -> Array:
        return self.xp.take(self._parts[name].weight, ids, axis=0)  # [T] -> [T, C]

    def linear(self, name: str, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        return self._parts[name](x, then, onto)  # [T, in] -> [T, out]

    def linears(self, names: tuple[str, ...], x: Array) -> tuple[Array, ...]:
        x = self._parts[names](x)  # [T, in] -> [T, out of all]
        return tuple([x[:, columns] for columns in self._columns[names]])  # each [T, out]

    def layer_norm(self, name: str, x: Array, epsilon: float) -> Array:
        xp, (weight, bias) = self.xp, self._parts[name]
        x = xp.astype(x, self._wide, copy=False)  # [..., C]
        x = x - xp.mean(x, axis=-1, keepdims=True)  # [..., C]
        x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + epsilon)  # [..., C]
        x = xp.astype(x, self._dtype, copy=False) * weight  # [..., C]
        return x if bias is None else x + bias  # [..., C]

    def rms_norm(self, name: str, x: Array, epsilon: float) -> Array:
        xp = self.xp
        x = xp.astype(x, self._wide, copy=False)  # [..., C]
        x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + epsilon)  # [..., C]
        return xp.astype(x, self._dtype, copy=False) * self._parts[name].weight  # [..., C]

    def gated(self, gate: Array, up: Array) -> Array:
        e = self.xp.exp(-abs(gate))  # [T, I]; whatever the sign, it cannot become infinite
        return gate * self.xp.where(gate >= 0, 1.0, e) / (1.0 + e) * up  # [T, I]

    def gated_linear(self, names: tuple[str, ...], x: Array) -> Array:
        return self.gated(*self.linears(names, x))  # [T, in] -> [T, I]

    def rotation(self, positions: Array, frequencies: Sequence[float], magnitude: float = 1.0) -> Turn:
        known = tuple(frequencies)
        if known not in self._frequencies:  # a CUDA graph cannot fetch them from the host
            self._frequencies[known] = self.xp.asarray(known, dtype=self._wide, device=self.device)  # [R / 2]
        angles = self.xp.astype(positions, self._wide)[:, None, None] * self._frequencies[known]  # [T, 1, R / 2]
        cosines, sines = self.xp.cos(angles) * magnitude, self.xp.sin(angles) * magnitude  # each [T, 1, R / 2]
        return self.xp.astype(cosines, self._dtype), self.xp.astype(sines, self._dtype)  # each [T, 1, R / 2]

    def rotate(self, x: Array, turn: Turn) -> Array:
        cosines, sines = turn
        half = cosines.shape[-1]
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]  # [T, n, R / 2] twice, [T, n, D - R]
        return self.xp.concat([a * cosines - b * sines, b * cosines + a * sines, rest], axis=-1)  # [T, n, D]

    def rotate_both(self, q: Array, k: Array, turn: Turn) -> tuple[Array, Array]:
        return self.rotate(q, turn), self.rotate(k, turn)

    def scores(self, name: str, hidden: Array) -> Array:
        return self._heads[name](hidden)  # [N, C] -> [N, V]


def side_by_side(name: str, together: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """A layer and those that read the same input: ("h.0.attn.q", "h.0.attn.k", "h.0.attn.v"), of any of the three."""
    for group in together:
        for each in group:
            if f".{name}".endswith(f".{each}"):
                block = name.removesuffix(each)
                return tuple(block + other for other in group)
    return (name,)


def without(prefix: str, kept: Mapping[Name, Any]) -> Iterable[tuple[Name, Any]]:
    """Those whose names begin with the prefix, without it."""
    for name, value in kept.items():
        if isinstance(name, str) and name.startswith(prefix):
            yield name.removeprefix(prefix), value
        elif not isinstance(name, str) and name[0].startswith(prefix):
            yield tuple(each.removeprefix(prefix) for each in name), value


def gelu(x: Array) -> Array:
    """A smooth ReLU, in the tanh form that GPT-2 was trained with (Hendrycks and Gimpel, arXiv 1606.08415)."""
    xp = array_namespace(x)
    return 0.5 * x * (1.0 + xp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {"gelu": gelu, "gelu_exact": gelu_exact, "relu": relu}
