"""Lesson 8: prefix caching. Replace each `raise NotImplementedError(...)` by code of yours.

Which blocks hold which text, so that a text that begins like an earlier one need not be computed again? Only full
blocks are shared. K and V of a token depend on all the tokens before it, so a block is known by its whole prefix,
folded into one hash per block:

    root = H(salt)    hash 0 = H(root, tokens 0-15)    hash 1 = H(hash 0, tokens 16-31)    hash 2 = H(hash 1, ...)  ...

A block that is freed keeps its contents until they are evicted: until the pool hands it out again. Until then it can
be found here.

Of a block table you need `table.blocks`, `table.num_tokens`, and the list `table.block_hashes`, which belongs to you: the
root hash, and then the hash of each full block that was published or adopted. (It is empty in a new table.)
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from itertools import chain

from minipage.memory import BlockCopy, BlockPool, BlockTable


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
        that cannot be confused ([1, 23] is not [12, 3]), under the secret, as `root_hash` does. `parent` may be any bytes,
        of any length, so it has to be clear where it ends; token ids are whole numbers from 0 to 2**63 - 1, in a list or
        a tuple, and there may be none. A hash is bytes, at least 16 of them, and all hashes are equally long. (Python's
        own `hash` is not cryptographic.)
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


class Parts:
    """Exercise 8.7: beginnings of blocks that can be found, in steps of `unit` tokens; whole blocks are found elsewhere.

    `unit` divides the block size. `block_hash(parent, token_ids)` is that of 8.1. A beginning of a block is known by a
    chain, too: the hash of its first `unit` tokens follows the hash of the block before (`parent`), the next one follows
    that one, and so on.

        block of 8, unit of 2     h1 = block_hash(parent, tokens 0-1)   h2 = block_hash(h1, tokens 2-3)   h3 = ...
    """

    def __init__(
        self,
        pool: BlockPool,
        unit: int,
        block_hash: Callable[[bytes, Sequence[int]], bytes],
    ) -> None:
        self.pool = pool
        self.unit = unit
        self.block_hash = block_hash
        self.part_of: dict[
            bytes, tuple[int, int]
        ] = {}  # hash -> (block, how many of its tokens)

    def publish(self, block: int, parent: bytes, token_ids: Sequence[int]) -> None:
        """Make all beginnings of `block` known. It holds `token_ids`, which are written: as many as fit, or fewer.

        A whole block is none of its own beginnings. If a beginning is known already, in another block, the newest block
        counts from now on, because it is evicted last. The same block may be published again when it holds more.
        """
        raise NotImplementedError("Exercise 8.7: a hash for every `unit` tokens")

    def find(self, parent: bytes, token_ids: Sequence[int]) -> tuple[int, int] | None:
        """The longest beginning that is known: (block, how many of its tokens), or None. Looking changes nothing.

        `token_ids` is what comes after the whole blocks that were found; it may be longer than a block. The last token is
        always left to be computed. A longer beginning may be known where a shorter one is not any more.
        """
        raise NotImplementedError(
            "Exercise 8.7: follow the hashes, and keep the last that is known"
        )

    def adopt(self, table: BlockTable, source: int, num_tokens: int) -> list[BlockCopy]:
        """Let `table`, which ends with a full block or is empty, go on with the first `num_tokens` tokens of `source`.

        Nobody may write into `source`: the table gets a new block (`self.pool.allocate()`) at its end, and `num_tokens`
        tokens more. Returns what has to be copied before the next step writes anything: [BlockCopy(source, new)].

        `source` may be in use by others, or free. A free one was just wanted, so it should be evicted later: take it out of
        the free queue (`revive`) and give it back (`free`), which puts it to the end; do that first, or it may be the very
        block that the pool hands out. In the end the table has no reference to it.
        """
        raise NotImplementedError(
            "Exercise 8.7: touch the source, take a block, order the copy"
        )

    def forget(self, block: int) -> None:
        """The contents of `block` are evicted. It may have no known beginning, and the pool is left alone."""
        raise NotImplementedError(
            "Exercise 8.7: remove all entries that lead to this block"
        )


class ScanResistant(MutableMapping):
    """Exercise 8.8: a free queue in which texts that come once cannot displace those that come again.

    A free queue is a mapping whose keys are the free blocks, the next to be evicted first (the values are None):

        queue[block] = None    the block was freed
        queue.pop(block)       it was found again, and is in use
        del queue[block]       it is handed out, and its contents are lost

    In the order of minipage's own queue, LRU, a long document pushes everything else out. Here there are two queues. In
    `found` are blocks whose contents were found again (popped) since they were written; they are evicted after all those
    in `new`. Within each, what was freed longest ago goes first. What is handed out gets new contents, which nobody has
    found yet.

    But nothing stays for ever: if `found` has more than half of the blocks (`pool.num_blocks // 2`), its first moves to
    the end of `new`, and counts as never found.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.new: OrderedDict[int, None] = OrderedDict()
        self.found: OrderedDict[int, None] = OrderedDict()
        self.again: set[int] = set()  # blocks, free or in use, that were found again

    def __setitem__(self, block: int, value: None) -> None:
        """The block was freed: to the end of its queue."""
        raise NotImplementedError("Exercise 8.8: which queue, and is `found` too long?")

    def pop(self, block: int) -> None:
        """The block, which is free, was found: it leaves its queue, and is remembered."""
        raise NotImplementedError("Exercise 8.8: out of its queue, and into `again`")

    def __delitem__(self, block: int) -> None:
        """The block, which is free, is handed out: it leaves its queue, and is not remembered any more."""
        raise NotImplementedError("Exercise 8.8: out of its queue, and of `again`")

    # ---- given: the order is `new`, then `found`

    def __iter__(self) -> Iterator[int]:
        return chain(self.new, self.found)

    def __len__(self) -> int:
        return len(self.new) + len(self.found)

    def __getitem__(self, block: int) -> None:
        return self.new[block] if block in self.new else self.found[block]
