"""Which blocks hold which text, so that a sequence that begins like an earlier one need not compute it again.

Only full blocks are shared. K and V of a token depend on all tokens before it, so a block is known by its whole prefix,
folded into one key per block:

    key 0 = hash(salt, tokens 0-15)    key 1 = hash(key 0, tokens 16-31)    key 2 = hash(key 1, tokens 32-47)    ...

The hash is cryptographic, under a secret drawn for each cache. Two different texts never get one key, and nobody can
prepare texts that do, so that one user would read another's K and V.

A block that is freed keeps its contents until the pool hands it out again, and until then it can be found here. Blocks
are reused in the order in which they were freed: those not wanted for the longest time go first, and of one sequence
the tail before the head (`BlockTable.free`), because without its head nobody can use the tail.

vLLM does the same; see "Automatic Prefix Caching" in its design documents.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from minipage.memory.block_pool import BlockPool
from minipage.memory.block_table import BlockTable


class PrefixCache:
    """Finds and publishes full blocks of one pool by the text that they hold."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.num_queried_tokens = 0  # tokens of all sequences that looked for their prefix
        self.num_hit_tokens = 0  # those of them that were found
        self._secret = secrets.token_bytes(32)
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        pool.on_reuse = self.forget

    def __contains__(self, block: int) -> bool:
        """Whether `block` can be found, be it in use or free."""
        return block in self._key_of

    def key(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """The key of a block that holds `token_ids` and follows the block with the key `parent`."""
        text = parent + b"|" + b",".join(b"%d" % token for token in token_ids)
        return hashlib.blake2b(text, key=self._secret, digest_size=32).digest()

    def root(self, salt: str) -> bytes:
        """What stands for the parent of a first block. Only texts of the same salt can share."""
        return hashlib.blake2b(salt.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=32).digest()

    def find(self, token_ids: Sequence[int], salt: str = "") -> tuple[list[int], list[bytes]]:
        """The blocks that hold the beginning of a text, as far as they are known; and the root and their keys.

        At least the last token is always left to be computed: its logits are wanted, and they are not kept.
        """
        blocks: list[int] = []
        keys, size = [self.root(salt)], self.pool.block_size
        for start in range(0, (len(token_ids) - 1) // size * size, size):
            key = self.key(keys[-1], token_ids[start : start + size])
            if key not in self._block_of:
                break
            blocks.append(self._block_of[key])
            keys.append(key)
        return blocks, keys

    def adopt(self, table: BlockTable, blocks: list[int], keys: list[bytes]) -> None:
        """Let an empty block table begin with what `find` has just found."""
        for block in blocks:
            self._hold(block)
        table.blocks, table.keys = list(blocks), list(keys)
        table.num_tokens = len(blocks) * self.pool.block_size

    def publish(self, table: BlockTable, token_ids: Sequence[int], salt: str = "") -> None:
        """Make the full blocks of a table known. Their K and V must have been written.

        If another block is known for the same text already (two sequences computed it side by side), the table takes
        that one, and gives its own back.
        """
        size = self.pool.block_size
        if not table.keys:
            table.keys.append(self.root(salt))
        for i in range(len(table.keys) - 1, table.num_tokens // size):
            key = self.key(table.keys[-1], token_ids[i * size : (i + 1) * size])
            table.keys.append(key)
            block, known = table.blocks[i], self._block_of.get(key)
            if known is None:
                self._key_of[block] = key  # first: whatever can be found can also be forgotten, even after an interrupt
                self._block_of[key] = block
            elif known != block:
                self._hold(known)
                self.pool.free(block)
                table.blocks[i] = known

    def forget(self, block: int) -> None:
        """The block is about to lose its contents. The pool calls this when it hands a block out."""
        if block in self._key_of:
            self._block_of.pop(self._key_of[block], None)
            del self._key_of[block]

    def reset(self) -> None:
        """Forget everything, for example because the model's weights have changed.

        Sequences keep their blocks. What they still publish follows an old root, under which nobody looks any more.
        """
        self._secret = secrets.token_bytes(32)
        self._block_of.clear()
        self._key_of.clear()

    def _hold(self, block: int) -> None:
        if self.pool.ref_count(block) == 0:
            self.pool.revive(block)
        else:
            self.pool.share(block)
