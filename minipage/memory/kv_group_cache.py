"""The prefix cache of a model with several KV cache groups, or with a window (kv_groups.py).

A block is known by its text, as ever, and by its group. A prefix is found as far as *every* group has what its next
token sees: a full group all blocks, one with a window those that the window reaches. The hit is the intersection:

    full layers         known  known  known  known  -          4 blocks
    a window of 2       -      known  known  -      -          0, 2 or 3: the last block before the end is wanted
    found               ^^^^^^^^^^^^^^^^^^^                    3
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from minipage.memory.block_pool import BlockPool
from minipage.memory.block_table import BlockTable
from minipage.memory.kv_groups import EVERYTHING, GroupTables, blocks_behind
from minipage.memory.prefix_cache import Prefix, PrefixCache


class GroupPrefixCache(PrefixCache):
    """Finds and publishes the blocks of `GroupTables`."""

    def __init__(self, pool: BlockPool, windows: tuple[int, ...]) -> None:
        super().__init__(pool)
        self.windows = windows

    def find(self, token_ids: Sequence[int], salt: str = "") -> Prefix:
        """As PrefixCache has it; the blocks are those of all groups, and the hashes say how far they reach."""
        size = self.pool.block_size
        hashes = [self.root_hash(salt)]
        runs = [0] * len(self.windows)  # of each group: how many blocks in a row are known, up to here
        found = 0
        for end in range(1, (len(token_ids) - 1) // size + 1):
            hashes.append(self.block_hash(hashes[-1], token_ids[(end - 1) * size : end * size]))
            runs = [run + 1 if key(hashes[-1], g) in self._block_of else 0 for g, run in enumerate(runs)]
            if all(run >= end - behind for run, behind in zip(runs, self._behind(end))):
                found = end
            if (0, EVERYTHING) in zip(runs, self.windows):
                break  # a group that wants all blocks will find no more
        hashes = hashes[: 1 + found]
        return Prefix([block for _, row in self._rows(hashes) for block in row], hashes)

    def adopt(self, table: BlockTable, blocks: list[int], block_hashes: list[bytes]) -> None:
        for block in blocks:
            self._hold(block)
        table.block_hashes = list(block_hashes)
        table.num_tokens = (len(block_hashes) - 1) * self.pool.block_size
        for part, (behind, row) in zip(cast(GroupTables, table).parts, self._rows(block_hashes)):
            part.num_behind, part.blocks = behind, row
            part.num_tokens = len(row) * self.pool.block_size

    def _publish_block(self, table: BlockTable, i: int, block_hash: bytes) -> None:
        for g, part in enumerate(cast(GroupTables, table).parts):
            if i >= part.num_behind:
                super()._publish_block(part, i - part.num_behind, key(block_hash, g))

    def _behind(self, num_blocks: int) -> list[int]:
        """How many of `num_blocks` full blocks lie behind the window of the next token, in each group."""
        size = self.pool.block_size
        return [blocks_behind(num_blocks * size, window, size) for window in self.windows]

    def _rows(self, hashes: list[bytes]) -> list[tuple[int, list[int]]]:
        """(blocks behind its window, the others) of each group, for these hashes, of which the first is the root."""
        behind = self._behind(len(hashes) - 1)
        return [(b, [self._block_of[key(each, g)] for each in hashes[1 + b :]]) for g, b in enumerate(behind)]


def key(block_hash: bytes, group: int) -> bytes:
    return block_hash + b"%d" % group
