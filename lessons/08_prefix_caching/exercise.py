"""Lesson 8: prefix caching. Replace each `raise NotImplementedError(...)` by code of yours.

Which blocks hold which text, so that a text that begins like an earlier one need not be computed again? Only full
blocks are shared. K and V of a token depend on all the tokens before it, so a block is known by its whole prefix,
folded into one hash per block:

    hash 0 = H(root, tokens 0-15)    hash 1 = H(hash 0, tokens 16-31)    hash 2 = H(hash 1, tokens 32-47)   ...

A block that is freed keeps its contents until they are evicted: until the pool hands it out again. Until then it can
be found here.

Of a block table you need `table.blocks`, `table.num_tokens`, and the list `table.block_hashes`, which belongs to you: the
root hash, and then the hash of each full block that was published or adopted. (It is empty in a new table.)
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from minipage.memory import BlockPool, BlockTable


class PrefixCache:
    """Finds and publishes full blocks of one pool by the text that they hold."""

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self._secret = secrets.token_bytes(
            32
        )  # so that nobody can work out hashes from outside
        self._block_of: dict[
            bytes, int
        ] = {}  # hash -> the block that holds this prefix
        self._hash_of: dict[int, bytes] = {}  # the other way round
        pool.on_evict = (
            self.forget
        )  # the pool calls this with every block that it hands out

    def __contains__(self, block: int) -> bool:
        """Whether `block` can be found, be it in use or free."""
        return block in self._hash_of

    def root_hash(self, salt: str) -> bytes:
        """The parent hash of a first block. Only texts of the same salt can share. (Given.)

        With the secret bytes([7]) * 32, root_hash("alice").hex() begins with 46223221ced8.
        """
        return hashlib.blake2b(
            salt.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=32
        ).digest()

    def block_hash(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """Exercise 8.1: the hash of a block that holds `token_ids` and follows the block with the hash `parent`.

        Two different (parent, token_ids) never have the same hash: feed all of both to a cryptographic hash, in a form
        that cannot be confused ([1, 23] is not [12, 3]), under the secret, as `root_hash` does. A hash is bytes, at least 16 of
        them, and always as many. `parent` may be any bytes, of any length, so it has to be clear where it ends; token ids are whole numbers from 0 to 2**63 - 1, in a list or a tuple, and there
        may be none. (Python's own `hash` is not cryptographic.)
        """
        raise NotImplementedError("Exercise 8.1: hash the parent and the tokens")

    def publish(
        self, table: BlockTable, token_ids: Sequence[int], salt: str = ""
    ) -> None:
        """Exercise 8.2: make the full blocks of a table known. Their K and V have been written.

        `token_ids` are the tokens of the text, at least `table.num_tokens` of them. Begin `table.block_hashes` with
        `root_hash(salt)` if it is empty, also if no block is full yet, and add a hash for each full block that has none yet.
        This is called after every step: what was published before must not be published again. Until 8.6 the pool and
        `table.blocks` stay as they are.

        Exercise 8.6: if another block is known for the same text already (two sequences computed it side by side), the
        table takes that one instead, with a reference, and gives its own reference to its own block back to the pool.
        The known block may be free by now: then it is revived, as in 8.4. The first to be published stays the known one.
        """
        raise NotImplementedError(
            "Exercise 8.2: a hash for each full block, and an entry in both dictionaries"
        )

    def find(
        self, token_ids: Sequence[int], salt: str = ""
    ) -> tuple[list[int], list[bytes]]:
        """Exercise 8.3: the blocks that hold the beginning of a text, as far as they are known; the root hash, and theirs.

        Stops at the first block that is not known. At least the last token is always left to be computed: its logits
        are wanted, and nobody kept them. Looking changes nothing: whoever asked may not be admitted after all. Both lists
        are new, and belong to whoever asked.
        """
        raise NotImplementedError("Exercise 8.3: follow the chain of hashes")

    def adopt(
        self, table: BlockTable, blocks: list[int], block_hashes: list[bytes]
    ) -> None:
        """Exercise 8.4: let an empty block table begin with what `find` has just found.

        It gets lists of its own, its `num_tokens`, and a reference to every block: `pool.share` if the block is in use,
        `pool.revive` if it lies in the free queue. There may be no blocks, only the root hash.
        """
        raise NotImplementedError("Exercise 8.4: take references, fill the table")

    def forget(self, block: int) -> None:
        """Exercise 8.5: the contents of the block are evicted. The pool calls this for blocks that are not known, too.

        The pool itself is left alone: forgetting is not freeing.
        """
        raise NotImplementedError(
            "Exercise 8.5: remove the entry from both dictionaries"
        )

    def reset(self) -> None:
        """Exercise 8.5: forget everything, for example because the model's weights have changed.

        Texts that are under way go on publishing after their old hashes. Nobody may find that: draw a new secret, at random
        (with `secrets`) and at each reset, and all hashes are others, the root hash too. The pool is left alone.
        """
        raise NotImplementedError(
            "Exercise 8.5: forget everything, and draw a new secret"
        )
