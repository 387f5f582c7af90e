"""A prefix cache that also finds beginnings which end inside a block: they are copied, and written on in the copy.

Whole blocks only, and one changed word costs the whole block that it is in; the larger the blocks, the more. Here a
block can also be found by each of its beginnings, in steps of `prefix_match_unit` tokens:

    known        [ a b c d | e f g h ]                      blocks of 4, a unit of 2
    hashes                   2   whole                      of a b c d e f, and of all
    wanted       [ a b c d | e f X Y ]
    found        [ a b c d | e f . . ]                      6 tokens: the first block is shared, of the second a copy
    afterwards   [ a b c d | e f X Y ]                      X and Y are written into the copy: copy-on-write

What the copy has beyond the hit is nobody's, and is written over before anybody reads it. So whoever owns the block may
go on writing behind what can be found in it. A block that is not full yet can be found, too, as far as it is written.

vLLM has this since June 2026 (RFC #45702, #45939, #46384), because the blocks of hybrid models grew to 784 tokens and
more; there, `prefix_match_unit` must divide the block size as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minipage.errors import ConfigurationError, require_positive
from minipage.memory.block_pool import BlockPool
from minipage.memory.block_table import BlockCopy, BlockTable
from minipage.memory.prefix_cache import Prefix, PrefixCache


class PartialPrefixCache(PrefixCache):
    """Finds whole blocks, and the beginning of the one after them.

    `copies` are to be made before the next step writes anything; whoever runs it takes them (engine/partial_hits.py).

    Raises:
        ConfigurationError: `prefix_match_unit` is no whole number that divides the block size.
    """

    def __init__(self, pool: BlockPool, prefix_match_unit: int) -> None:
        require_positive(prefix_match_unit=prefix_match_unit)
        if pool.block_size % prefix_match_unit:
            raise ConfigurationError(
                f"prefix_match_unit is {prefix_match_unit}; it must divide block_size, {pool.block_size}."
            )
        super().__init__(pool)
        self.prefix_match_unit = prefix_match_unit
        self.copies: list[BlockCopy] = []
        self._part_of: dict[bytes, tuple[int, int]] = {}  # a block, and how many of its tokens
        self._parts_of: dict[int, list[bytes]] = {}  # of a block, the hashes of its beginnings, the shortest first

    def __contains__(self, block: int) -> bool:
        return self.num_findable(block) > 0

    def num_findable(self, block: int) -> int:
        """How many tokens of `block` can be found; nobody may write there."""
        if super().__contains__(block):
            return self.pool.block_size
        parts = map(self._part_of.get, self._parts_of.get(block, ()))
        return max((part[1] for part in parts if part and part[0] == block), default=0)

    def find(self, token_ids: Sequence[int], salt: str = "") -> Prefix:
        """As PrefixCache has it. If the prefix goes on inside a block, there is one hash more than there are blocks:
        that of the block's beginning."""
        found, size = super().find(token_ids, salt), self.pool.block_size
        start = len(found.blocks) * size
        longest = token_ids[start : min(start + size, len(token_ids)) - 1]
        # A longer beginning may be known where a shorter one is not any more.
        known = [part for part in self._hashes(found.block_hashes[-1], longest) if part in self._part_of]
        found.block_hashes.extend(known[-1:])
        return found

    def adopt(self, table: BlockTable, blocks: list[int], block_hashes: list[bytes]) -> None:
        super().adopt(table, blocks, block_hashes[: 1 + len(blocks)])
        for part_hash in block_hashes[1 + len(blocks) :]:  # one, or none
            source, num_tokens = self._part_of[part_hash]
            self._hold(source)  # it is wanted, so it is evicted later
            self.pool.free(source)
            table.blocks.append(self.pool.allocate())
            table.num_tokens += num_tokens
            self.copies.append(BlockCopy(source, table.blocks[-1]))

    def publish(self, table: BlockTable, token_ids: Sequence[int], salt: str = "") -> None:
        """Make the full blocks of a table known, and all beginnings of its blocks, the last one's too."""
        size, first = self.pool.block_size, max(0, len(table.block_hashes) - 1)
        super().publish(table, token_ids, salt)
        for i, (block, parent) in enumerate(zip(table.blocks[first:], table.block_hashes[first:]), first):
            self._publish_parts(block, parent, token_ids[i * size : min(table.num_tokens, (i + 1) * size - 1)])

    def _publish_parts(self, block: int, parent: bytes, token_ids: Sequence[int]) -> None:
        """Of equal beginnings in several blocks the newest is found, because it is evicted last."""
        parts = self._parts_of.setdefault(block, [])
        beyond = token_ids[len(parts) * self.prefix_match_unit :]
        for part_hash in self._hashes(parts[-1] if parts else parent, beyond):
            parts.append(part_hash)  # in this order: whatever can be found can also be forgotten
            self._part_of[part_hash] = block, len(parts) * self.prefix_match_unit

    def _hashes(self, parent: bytes, token_ids: Sequence[int]) -> Iterator[bytes]:
        """Those of the beginnings of `token_ids`, each chained to the one before it."""
        unit = self.prefix_match_unit
        for start in range(0, len(token_ids) // unit * unit, unit):
            parent = self.block_hash(parent, token_ids[start : start + unit])
            yield parent

    def forget(self, block: int) -> None:
        super().forget(block)
        for part_hash in self._parts_of.get(block, ()):
            if self._part_of.get(part_hash, (None,))[0] == block:
                del self._part_of[part_hash]
        self._parts_of.pop(block, None)

    def reset(self) -> None:
        super().reset()
        self._part_of.clear()
        self._parts_of.clear()
