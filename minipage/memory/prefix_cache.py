"""Which blocks hold which text, so that a sequence that begins like an earlier one need not compute it again.

Only full blocks are shared. K and V of a token depend on all tokens before it, so a block is known by its whole prefix,
folded into one hash per block:

    root = H(salt)    hash 0 = H(root, tokens 0-15)    hash 1 = H(hash 0, tokens 16-31)    hash 2 = H(hash 1, ...)  ...

H is cryptographic, under a secret drawn for each cache. Two different texts never get one hash, and nobody can prepare
texts that do, so that one user would read another's K and V.

A block that is freed keeps its contents until they are evicted: until the pool hands the block out again. Until then it
can be found here. Blocks are evicted in the order in which they were freed: those not wanted for the longest time go
first, and of one sequence the tail before the head (`BlockTable.free`), because without its head nobody can use it.

vLLM does the same; see "Automatic Prefix Caching" in its design documents.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import NamedTuple

from minipage.memory.block_pool import BlockPool
from minipage.memory.block_table import BlockTable


class Prefix(NamedTuple):
    """The beginning of a text, as far as it was found."""

    blocks: list[int]
    block_hashes: list[bytes]  # the root hash, then the hash of each block


class PrefixCache:
    """Finds and publishes full blocks of one pool by the text that they hold."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self._secret = secrets.token_bytes(32)
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        pool.on_evict = self.forget
        pool.is_known = self.__contains__

    def __contains__(self, block: int) -> bool:
        """Whether `block` can be found, be it in use or free."""
        return block in self._hash_of

    def block_hash(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """The hash of a block that holds `token_ids` and follows the block with the hash `parent`."""
        text = parent + b"|" + b",".join(b"%d" % token for token in token_ids)
        return hashlib.blake2b(text, key=self._secret, digest_size=32).digest()

    def root_hash(self, salt: str) -> bytes:
        """The parent hash of a first block. Only texts of the same salt can share."""
        return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=32).digest()

    def find(self, token_ids: Sequence[int], salt: str = "") -> Prefix:
        """The blocks that hold the beginning of a text, as far as they are known.

        At least the last token is always left to be computed: its logits are wanted, and they are not kept.
        """
        size = self.pool.block_size
        found = Prefix([], [self.root_hash(salt)])
        for start in range(0, (len(token_ids) - 1) // size * size, size):
            block_hash = self.block_hash(found.block_hashes[-1], token_ids[start : start + size])
            if block_hash not in self._block_of:
                break
            found.blocks.append(self._block_of[block_hash])
            found.block_hashes.append(block_hash)
        return found

    def adopt(self, table: BlockTable, blocks: list[int], block_hashes: list[bytes]) -> None:
        """Let an empty block table begin with what `find` has just found."""
        for block in blocks:
            self._hold(block)
        table.blocks = list(blocks)
        table.block_hashes = list(block_hashes)
        table.num_tokens = len(blocks) * self.pool.block_size

    def publish(self, table: BlockTable, token_ids: Sequence[int], salt: str = "") -> None:
        """Make the full blocks of a table known. Their K and V must have been written.

        If another block is known for the same text already (two sequences computed it side by side), the table takes
        that one, and gives its own back.
        """
        size = self.pool.block_size
        if not table.block_hashes:
            table.block_hashes.append(self.root_hash(salt))
        for i in range(len(table.block_hashes) - 1, table.num_tokens // size):
            block_hash = self.block_hash(table.block_hashes[-1], token_ids[i * size : (i + 1) * size])
            table.block_hashes.append(block_hash)
            self._publish_block(table, i, block_hash)

    def _publish_block(self, table: BlockTable, i: int, block_hash: bytes) -> None:
        block = table.blocks[i]
        known = self._block_of.get(block_hash)
        if known is None:  # in this order: whatever can be found can also be forgotten, even after an interrupt
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block
        elif known != block:
            self._hold(known)
            self.pool.free(block)
            table.blocks[i] = known

    def forget(self, block: int) -> None:
        """The block's contents are evicted. The pool calls this when it hands a block out."""
        if block in self._hash_of:
            self._block_of.pop(self._hash_of[block], None)
            del self._hash_of[block]

    def reset(self) -> None:
        """Forget everything, for example because the model's weights have changed.

        Sequences keep their blocks. What they still publish follows an old root hash, under which nobody looks now.
        """
        self._secret = secrets.token_bytes(32)
        self._block_of.clear()
        self._hash_of.clear()

    def _hold(self, block: int) -> None:
        if self.pool.ref_count(block) == 0:
            self.pool.revive(block)
        else:
            self.pool.share(block)
