"""The physical memory: a fixed number of blocks, each with room for the K and V of `block_size` tokens.

The pool never touches K or V. It deals in block numbers, as an operating system deals in page frames: a block is
either in the free queue, or it is in use and its reference count says by how many block tables.

    allocate() ──▶  in use, 1 reference  ── share() ──▶  2 references
                                         ◀── free() ───
    free queue ◀── free() ──  the last reference
               ─── revive() ─▶  a free block whose contents are still good is taken back, from anywhere in the queue

This is section 4.2 of Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention"
(arXiv 2309.06180).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice

from minipage.errors import BlockError, ConfigurationError, IntegrityError, OutOfBlocksError, require_positive
from minipage.memory.eviction import Eviction, lru, make_queue


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, a free queue and a reference count for each.

    Every operation takes time O(1) per block, however large the pool. A block without references is always in the
    queue, even if an operation is interrupted half way: so whoever frees every reference has all blocks back.

    Raises:
        ConfigurationError: `num_blocks` or `block_size` is not a whole number of at least 1; `eviction` makes no
            mapping.
    """

    def __init__(self, num_blocks: int, block_size: int = 16, eviction: Eviction = lru) -> None:
        require_positive(num_blocks=num_blocks, block_size=block_size)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self.is_known: Callable[[int], bool] = lambda block: False  # whether the prefix cache can find it
        # A queue: blocks leave at the front and return at the back, so the block freed longest ago is reused first.
        # (An OrderedDict, not a deque, because it can also give up a block from its middle in O(1).)
        # Another order is a matter of `eviction`; see eviction.py.
        self._free_queue = make_queue(eviction, self)
        self._free_queue.update(dict.fromkeys(range(num_blocks)))
        # Called with a block when its old contents are evicted: the prefix cache must forget them.
        self.on_evict: Callable[[int], None] = lambda block: None
        self.owner: Callable[[], object] | None = None  # a weak reference to the scheduler that it serves

    @property
    def num_free(self) -> int:
        return len(self._free_queue)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def free_queue(self) -> tuple[int, ...]:
        """The free blocks, next to be allocated first."""
        return tuple(self._free_queue)

    def ref_count(self, block: int) -> int:
        """How many block tables hold `block`; 0 means that it is free."""
        if not 0 <= block < self.num_blocks:
            raise BlockError(f"there is no block {block}: the pool has blocks 0 to {self.num_blocks - 1}.")
        return self._ref_counts[block]

    def allocate(self) -> int:
        """Take one block, with one reference. Raises OutOfBlocksError if none is free."""
        return self.allocate_many(1)[0]

    def allocate_many(self, count: int) -> list[int]:
        """Take `count` blocks, each with one reference: all of them, or none and an OutOfBlocksError.

        Whatever a free block still holds is evicted when it is taken here: `on_evict` is told. `revive` keeps it.
        """
        if count < 0:
            raise ConfigurationError(f"cannot allocate {count} blocks.")
        if count > self.num_free:
            raise OutOfBlocksError(
                f"{count} blocks wanted, {self.num_free} of {self.num_blocks} are free. "
                "Free a block table first, or make the pool larger."
            )
        blocks = list(islice(self._free_queue, count))
        for block in blocks:
            self._ref_counts[block] = 1
            del self._free_queue[block]
            self.on_evict(block)
        return blocks

    def revive(self, block: int) -> None:
        """Take one particular block out of the free queue, with one reference, because what it holds is wanted again.

        Raises BlockError if it is in use.
        """
        if self.ref_count(block) > 0:
            raise BlockError(f"block {block} is in use; share it.")
        self._ref_counts[block] = 1
        self._free_queue.pop(block)

    def share(self, block: int) -> None:
        """Add a reference to a block in use. Raises BlockError if it is free: its contents may vanish at any time."""
        if self.ref_count(block) == 0:
            raise BlockError(f"block {block} is free and cannot be shared; allocate it first.")
        self._ref_counts[block] += 1

    def free(self, block: int) -> None:
        """Drop one reference; with the last one the block goes to the back of the free queue.

        Raises BlockError if the block is free already.
        """
        if self.ref_count(block) == 0:
            raise BlockError(f"block {block} was freed twice: no block table holds it any more.")
        if self._ref_counts[block] == 1:
            self._free_queue[block] = None
        self._ref_counts[block] -= 1

    def check_integrity(self, block_tables: Iterable[Iterable[int]]) -> None:
        """Check the pool against all the block tables in the world, in O(num_blocks).

        Raises IntegrityError with the first thing that is wrong: a block neither free nor in use (or both), or a
        reference count other than the number of block-table entries that name the block.
        """
        holders = Counter(block for table in block_tables for block in table)
        for block, count in enumerate(self._ref_counts):
            if count != holders[block]:
                raise IntegrityError(
                    f"block {block} has reference count {count}, but {holders[block]} block-table entries name it: "
                    + ("it leaked." if count > holders[block] else "it may be reused while it is still read.")
                )
            if (count == 0) != (block in self._free_queue):
                where = "not in" if count == 0 else "in"
                raise IntegrityError(f"block {block} has reference count {count} and is {where} the free queue.")
        strangers = (holders.keys() | self._free_queue.keys()) - set(range(self.num_blocks))
        if strangers:
            raise IntegrityError(f"blocks {sorted(strangers)} do not exist in a pool of {self.num_blocks}.")
