"""Which replica gets a request. Each has a prefix cache of its own, so it matters.

    replica A   knows  [To be, or not] [to be: that is]                 2 blocks of the prompt
    replica B   knows  [To be, or not]                                  1 block
    prompt             [To be, or not] [to be: that is] [the question]  goes to A, unless A has far more to do than B

What they know is learnt from their KV events (engine/kv_events.py). A hash means nothing outside of its cache; but an
event says the tokens of a block and which block lies before it, and so a prompt can be followed from block to block.
This file is plain Python and knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Protocol, TypeAlias

from minipage.engine.kv_events import BlockRemoved, BlockStored, KVCacheEvent

Place: TypeAlias = tuple[str | bytes, tuple[int, ...]]  # the hash of the block before (or the salt), and the tokens


class Prefixes:
    """The texts that one replica has in its prefix cache, by its events alone."""

    def __init__(self) -> None:
        self.block_size = 0  # unknown until a block is stored
        self.group: int | None = None  # of several KV cache groups, the one that is looked at
        self._hash_at: dict[Place, bytes] = {}
        self._place_of: dict[bytes, Place] = {}

    def apply(self, event: KVCacheEvent) -> None:
        if isinstance(event, BlockStored):
            self._store(event)
        elif isinstance(event, BlockRemoved):
            for block_hash in event.block_hashes:
                self._hash_at.pop(self._place_of.pop(block_hash, ("", ())), None)
        else:
            self._hash_at.clear()
            self._place_of.clear()

    def _store(self, event: BlockStored) -> None:
        if event.kv_cache_spec_kind == "sliding_window":
            return  # what lies behind a window is given back early: a full group says more
        if not self.block_size:
            self.block_size, self.group = event.block_size, event.group_idx
        for block in event.apart() if event.group_idx == self.group else ():
            salt = str(block.extra_keys[0][0]) if block.extra_keys and block.extra_keys[0] else ""
            parent = salt if block.parent_block_hash is None else block.parent_block_hash
            place = parent, tuple(block.token_ids)
            self._hash_at[place] = block.block_hashes[0]
            self._place_of[block.block_hashes[0]] = place

    def num_known(self, token_ids: Sequence[int], salt: str = "") -> int:
        """How many tokens of the beginning of this text are known, in full blocks."""
        size, known = self.block_size, 0
        parent: str | bytes | None = salt
        while size and known + size <= len(token_ids):
            parent = self._hash_at.get((parent, tuple(token_ids[known : known + size])))  # type: ignore[arg-type]
            if parent is None:
                break
            known += size
        return known


class Router(Protocol):
    """Chooses a replica for each request."""

    def tell(self, replica: str, events: Iterable[KVCacheEvent]) -> None:
        """What has changed in a replica's prefix cache."""

    def forget(self, replica: str) -> None:
        """It is lost, and its cache with it."""

    def choose(self, token_ids: Sequence[int], salt: str, loads: Mapping[str, int]) -> str | None:
        """One of the replicas in `loads`, which says how many requests each has; None: no matter which."""


class PrefixRouter:
    """The longest known prefix wins, except at a replica that is overloaded.

    Args:
        most_ahead: a replica is overloaded if it has more than this many requests more than the one that has the
            fewest. With 0, load alone counts, and prefixes only decide between equals.
    """

    def __init__(self, most_ahead: int = 8) -> None:
        self.most_ahead = most_ahead
        self.prefixes: dict[str, Prefixes] = {}
        self._turns = count()
        self._last_turn: dict[str, int] = {}

    def tell(self, replica: str, events: Iterable[KVCacheEvent]) -> None:
        prefixes = self.prefixes.setdefault(replica, Prefixes())
        for event in events:
            prefixes.apply(event)

    def forget(self, replica: str) -> None:
        self.prefixes.pop(replica, None)

    def choose(self, token_ids: Sequence[int], salt: str, loads: Mapping[str, int]) -> str | None:
        limit = min(loads.values()) + self.most_ahead
        known = {
            replica: self.prefixes[replica].num_known(token_ids, salt) if replica in self.prefixes else 0
            for replica, load in loads.items()
            if load <= limit
        }
        # Among equals the one with less to do, and then the one whose turn is longest ago.
        best = max(known, key=lambda each: (known[each], -loads[each], -self._last_turn.get(each, -1)))
        self._last_turn[best] = next(self._turns)
        return best


class RoundRobin:
    """Everybody in turn: what a router that knows nothing does. It is here to be compared with."""

    def __init__(self) -> None:
        self._turns = count()

    def tell(self, replica: str, events: Iterable[KVCacheEvent]) -> None:
        pass

    def forget(self, replica: str) -> None:
        pass

    def choose(self, token_ids: Sequence[int], salt: str, loads: Mapping[str, int]) -> str | None:
        return sorted(loads)[next(self._turns) % len(loads)]


class LeftToRay(RoundRobin):
    """Ray's own router chooses, by the length of its queues."""

    def choose(self, token_ids: Sequence[int], salt: str, loads: Mapping[str, int]) -> str | None:
        return None
