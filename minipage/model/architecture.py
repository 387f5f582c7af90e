"""What a model is, said twice: an `Architecture` says what is computed, `Layers` say how and where.

    token_ids ─▶ Architecture.forward ── embed, linear, layer_norm, ... ─▶ Layers     plain      the array API
                          │                                                           compiled   numba
                          └─ attend(layer, q, k, v) ─▶ whoever runs the model         torch, onednn

An architecture is a frozen dataclass of sizes: one file, which imports no array library, holds no arrays and never
counts heads. Layers hold the weights in one array library on one device, in whatever order suits it, and know no
architecture by name. So a new architecture works everywhere at once, and a new way to compute serves all of them.

Shapes: T tokens in the batch, C numbers to describe each, n heads of size D (H of q, KH of K and V), V words, N rows
whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias

# A NumPy array, a PyTorch tensor or a CuPy array: the array-API standard has no common static type.
Array: TypeAlias = Any
# (layer, q [T, H, D], k [T, KH, D], v [T, KH, D]) -> [T, H, D]; K and V may have fewer heads than q
Attend: TypeAlias = Callable[[int, Array, Array, Array], Array]
# (name, shape) -> the tensor that a checkpoint has by that name; ModelError unless it has one of that shape
Tensors: TypeAlias = Callable[[str, tuple[int, ...]], Array]
Activation: TypeAlias = Literal["gelu", "gelu_exact", "relu"]
Split: TypeAlias = Literal["out", "in", None]
Heads: TypeAlias = Literal["q", "kv", None]
Turn: TypeAlias = tuple[Array, Array]  # cosines and sines, [T, 1, R / 2] each: the first R numbers of a head are turned


class KVSpec(NamedTuple):
    """What a token leaves behind in the cache."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    windows: tuple[int | None, ...] = ()  # for each layer, how many tokens it looks back; empty: all see everything


class Weight(NamedTuple):
    """Name `x.weight` or `x.bias` belongs to what `Layers` are asked for as `x`."""

    shape: tuple[int, ...]  # of a matrix: (in, out)
    # Between ranks: each has some of the columns ("out"), or some of the rows ("in"), whose products are added up.
    split: Split = None
    heads: Heads = None  # whose columns or rows these are, those of q or those of K and V: a head is never cut
    is_table: bool = False  # its rows are looked up by `embed`


class Architecture(Protocol):
    """What is computed: names, order, shapes."""

    together: ClassVar[tuple[tuple[str, ...], ...]]  # matrices that read the same input, as `linears` is given them

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...  # the longest sequence, in tokens
    @property
    def num_heads(self) -> int: ...  # of the queries
    @property
    def kv(self) -> KVSpec: ...
    @property
    def head(self) -> str: ...  # the table [V, C] that `scores` is given

    def weights(self) -> Iterator[tuple[str, Weight]]:
        """Every weight, by name."""

    def forward(self, layers: Layers, token_ids: Array, positions: Array, attend: Attend) -> Array:
        """Run the network over a flat batch, [T] token ids and [T] positions -> [T, C] hidden states.

        Args:
            layers: with the weights.
            token_ids: integers below `vocab_size`.
            positions: integers below `max_model_len`; where each token stands in its own sequence.
            attend: called once per layer with that layer's q [T, H, D], and k and v [T, KH, D]; returns [T, H, D].
        """

    def logits(self, layers: Layers, hidden: Array) -> Array:
        """[N, C] hidden states -> [N, V] scores of the next token."""

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """From the settings in config.json; ModelError says which of them is not computed."""

    def adapt(self, tensors: Tensors) -> Iterator[tuple[str, Array]]:
        """The weights by our names, from a checkpoint that has other names, other cuts, or (out, in)."""


class Layers(Protocol):
    """How it is computed, and where. `then` is a function that each number of the result goes through."""

    xp: Any  # the array library, as the array API has it
    device: Any

    def at(self, prefix: str) -> Layers:
        """Those whose names begin with it: layers.at("h.3").linear("q", x) is layers.linear("h.3.q", x)."""

    def asarray(self, numbers: Array) -> Array: ...  # a NumPy array, where these layers compute
    def embed(self, name: str, ids: Array) -> Array: ...  # [T] -> [T, C]
    def linear(self, name: str, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        """[T, in] -> [T, out], added to `onto`, if it is given: perhaps in its memory, so do not use it any more."""

    def linears(self, names: tuple[str, ...], x: Array) -> tuple[Array, ...]: ...  # of one x, in one product
    def layer_norm(self, name: str, x: Array, epsilon: float) -> Array: ...  # [..., C] -> [..., C]
    def rms_norm(self, name: str, x: Array, epsilon: float) -> Array: ...  # [..., C] -> [..., C]
    def gated(self, gate: Array, up: Array) -> Array: ...  # silu(gate) * up, [T, I]
    def gated_linear(self, names: tuple[str, ...], x: Array) -> Array: ...  # two products of one x as gate and up

    def rotation(self, positions: Array, frequencies: Sequence[float], magnitude: float = 1.0) -> Turn:
        """How far the heads of each token are turned: by position * frequency, [R / 2]; once for all layers."""

    def rotate(self, x: Array, turn: Turn) -> Array: ...  # [T, n, D] -> [T, n, D]; number i with number i + R / 2
    def rotate_both(self, q: Array, k: Array, turn: Turn) -> tuple[Array, Array]: ...  # perhaps in their memory
    def scores(self, name: str, hidden: Array) -> Array: ...  # [N, C] -> [N, V], with each row of a table


class Model:
    """An architecture with its weights: what an engine runs."""

    def __init__(self, architecture: Architecture, layers: Layers) -> None:
        self.architecture = architecture
        self.layers = layers

    @property
    def kv(self) -> KVSpec:
        return self.architecture.kv

    def forward(self, token_ids: Array, positions: Array, attend: Attend) -> Array:
        """[T] token ids and [T] positions -> [T, C] hidden states, ready for `logits`; see Architecture."""
        return self.architecture.forward(self.layers, token_ids, positions, attend)

    def logits(self, hidden: Array) -> Array:
        """[N, C] hidden states -> [N, V] scores of the next token."""
        return self.architecture.logits(self.layers, hidden)


def heads(x: Array, head_size: int) -> Array:
    """[T, n * D] -> [T, n, D]: as many heads as there are here."""
    return x.reshape(len(x), x.shape[1] // head_size, head_size)


def flat(x: Array) -> Array:
    """[T, n, D] -> [T, n * D]."""
    return x.reshape(len(x), x.shape[1] * x.shape[2])


def linear(
    name: str, n_in: int, n_out: int, split: Split = None, bias: bool = False, heads: Heads = None
) -> Iterator[tuple[str, Weight]]:
    """The weights of a linear layer. Of ranks that each have some rows ("in"), each adds its part, and one the bias."""
    yield f"{name}.weight", Weight((n_in, n_out), split, heads)
    if bias:
        yield f"{name}.bias", Weight((n_out,), split, heads) if split == "out" else Weight((n_out,))


def norm(name: str, size: int, bias: bool = False) -> Iterator[tuple[str, Weight]]:
    """The weights of a norm."""
    yield f"{name}.weight", Weight((size,))
    if bias:
        yield f"{name}.bias", Weight((size,))


def turned(architecture: Architecture, tensors: Tensors, name: str, weight: Weight) -> Array:
    """A weight from a checkpoint that has matrices as PyTorch's linear layers do, (out, in); tables are alike."""
    if len(weight.shape) == 1 or weight.is_table or name == f"{architecture.head}.weight":
        return tensors(name, weight.shape)
    return tensors(name, weight.shape[::-1]).T  # [in, out]
