"""KV cache groups: layers that look equally far back share a block table, and the tables of all groups one pool.

A layer with a sliding window of W tokens never again looks at what lies further back, so the blocks there can be given
back while the text goes on. Where a model mixes such layers with full ones, each kind has a table of its own:

    tokens             0-3   4-7   8-11  12-15  16-17        blocks of 4 tokens; token 18 is next
    full layers         7     1     3     0      5           everything is kept
    a window of 6       -     -     -     2      4           token 18 sees tokens 13 to 18: 6, 8 and 9 are free again

A null block stands in the table where one was given back, so that every other keeps its place. All blocks are of one
size, because each holds K and V of the same number of layers: a kind with more layers has several groups. This is what
vLLM calls the hybrid KV cache manager.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, cast

from minipage.memory.block_pool import BlockPool
from minipage.memory.block_table import BlockCopy, BlockTable, blocks_needed

NULL_BLOCK = -1  # stands in a table, and is no block
EVERYTHING = 2**63 - 1  # a window that no text is longer than


class Layer(NamedTuple):
    """Where a layer finds its K and V."""

    group: int  # of layers that share a block table
    place: int  # among the layers of the group, and so in the arrays of KVCache
    options: dict[str, int]  # for its attention: {} or {"window": tokens}


class KVGroups(NamedTuple):
    """Which layers have a block table in common."""

    windows: tuple[int, ...]  # of each group; EVERYTHING: its layers see all tokens
    layers: tuple[Layer, ...]
    num_layers: int  # of a group; the last one of a kind may have fewer, and leaves room in its blocks empty

    @classmethod
    def of(cls, num_layers: int, windows: tuple[int | None, ...] = (), in_groups: bool = True) -> KVGroups:
        """For the layers of a model, each with its window, or None; `windows` may be empty.

        in_groups: False: one ordinary table serves all layers, and nothing is given back.
        """
        windows = windows or (None,) * num_layers
        kinds: dict[int, list[int]] = {}  # window: the layers that have it
        for layer, window in enumerate(windows):
            kinds.setdefault(window if window and in_groups else EVERYTHING, []).append(layer)
        size = min(map(len, kinds.values()))  # layers of a group: those of the rarest kind are one group
        groups = [(window, alike[i : i + size]) for window, alike in kinds.items() for i in range(0, len(alike), size)]
        places = {layer: (g, i) for g, (_, group) in enumerate(groups) for i, layer in enumerate(group)}
        layers = [Layer(*places[i], {"window": window} if window else {}) for i, window in enumerate(windows)]
        return cls(tuple(window for window, _ in groups), tuple(layers), size)

    @property
    def parts(self) -> tuple[int | None, ...]:
        """Of each group, which of a sequence's tables it has; (None,): one ordinary table serves all layers."""
        return (None,) if self.windows == (EVERYTHING,) else tuple(range(len(self.windows)))


def blocks_behind(num_tokens: int, window: int, block_size: int) -> int:
    """How many blocks lie behind the window of the token that comes after `num_tokens`."""
    return max(0, num_tokens + 1 - window) // block_size


def blocks_held(num_tokens: int, window: int, block_size: int, most_at_once: int) -> int:
    """The most blocks that a text of `num_tokens` holds at a time, if a step computes up to `most_at_once` of them."""
    in_reach = window - 1 + most_at_once  # tokens in a row; at worst the first of them is the last of its block
    return min(blocks_needed(num_tokens, block_size), 1 + blocks_needed(in_reach - 1, block_size))


class WindowTable(BlockTable):
    """The block table of one group: an ordinary one, of the text from the first block on that is not behind the window.

    `blocks` and `num_tokens` are of that part; whoever iterates sees null blocks before it.
    """

    def __init__(self, pool: BlockPool, window: int = EVERYTHING) -> None:
        super().__init__(pool)
        self.window = window
        self.num_behind = 0  # blocks

    def __iter__(self) -> Iterator[int]:
        return iter([NULL_BLOCK] * self.num_behind + self.blocks)

    def slot_mapping(self, start: int, stop: int) -> list[int]:
        behind = self.num_behind * self.pool.block_size
        return super().slot_mapping(start - behind, stop - behind)

    def slide(self) -> None:
        """Give back the blocks that no token sees any more."""
        for _ in range(blocks_behind(self.num_tokens, self.window, self.pool.block_size)):
            self.pool.free(self.blocks.pop(0))
            self.num_tokens -= self.pool.block_size
            self.num_behind += 1

    def fork(self) -> WindowTable:
        twin = cast(WindowTable, super().fork())
        twin.window, twin.num_behind = self.window, self.num_behind
        return twin

    def free(self) -> None:
        super().free()
        self.num_behind = 0


class GroupTables(BlockTable):
    """The tables of one sequence, one for each group. They grow, fork and move together.

    To the scheduler they are one table, which holds the blocks of all; slots are asked of `parts`. A subclass says the
    windows.
    """

    windows: ClassVar[tuple[int, ...]]

    def __init__(self, pool: BlockPool) -> None:
        self.parts = [WindowTable(pool, window) for window in self.windows]
        self.num_tokens = 0
        self.block_hashes = []

    @property
    def pool(self) -> BlockPool:
        return self.parts[0].pool

    @pool.setter
    def pool(self, pool: BlockPool) -> None:
        for part in self.parts:
            part.pool = pool

    @property
    def blocks(self) -> list[int]:  # type: ignore[override]
        return [block for part in self.parts for block in part.blocks]

    def blocks_to_allocate(self, num_tokens: int) -> int:
        return sum(part.blocks_to_allocate(num_tokens) for part in self.parts)

    def append(self, num_tokens: int) -> list[BlockCopy]:
        if (wanted := self.blocks_to_allocate(num_tokens)) > self.pool.num_free:
            self.pool.allocate_many(wanted)  # raises, before any of the tables has changed
        self.num_tokens += num_tokens
        return [copy for part in self.parts for copy in part.append(num_tokens)]

    def truncate(self, num_tokens: int) -> None:
        for part in self.parts:
            part.truncate(num_tokens - part.num_behind * self.pool.block_size)
        self.num_tokens = num_tokens
        del self.block_hashes[1 + num_tokens // self.pool.block_size :]

    def fork(self) -> GroupTables:
        twin = type(self)(self.pool)
        twin.parts = [part.fork() for part in self.parts]
        twin.num_tokens = self.num_tokens
        twin.block_hashes = self.block_hashes.copy()
        return twin

    def free(self) -> None:
        for part in self.parts:
            part.free()
        self.num_tokens = 0
        self.block_hashes = []

    def move_to(self, pool: BlockPool, moved: dict[int, int]) -> None:
        for part in self.parts:
            part.move_to(pool, moved)
        self.block_hashes = self.block_hashes[:1]

    def shared_tail(self) -> int | None:
        """That of the first group: tails are shared, and copied, in all groups at once."""
        return self.parts[0].shared_tail()
