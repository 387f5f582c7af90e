"""KV events: a prefix cache says aloud which blocks it stores and removes, for routers, who want to know where a
prefix is.

    publish() ─▶ BlockStored(block_hashes, parent_block_hash, token_ids, ...)  ┐
    forget()  ─▶ BlockRemoved(block_hashes)                                    ├─▶ KVEvents ─▶ Subscriber.take()
    reset()   ─▶ AllBlocksCleared()                                            ┘   numbered    each at its own pace

Names and fields are vLLM's (vllm/distributed/kv_events.py). A hash says nothing outside of its cache, because each
cache draws a secret; what others compare are the `token_ids`, block for block from the beginning of a text.

    llm = LLM(enable_prefix_caching=True, kv_events_config={"enable_kv_cache_events": True})
    subscriber = llm.kv_events.subscribe()
    batch = subscriber.take()      all that has happened since the last time, or None
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from typing import Any, TypeAlias

from minipage.errors import ConfigurationError, require_positive, shown
from minipage.memory import BlockTable, Prefix, PrefixCache
from minipage.memory.kv_group_cache import GroupPrefixCache, key
from minipage.memory.kv_groups import EVERYTHING
from minipage.scheduling import Scheduler

BUFFER_STEPS = 10_000  # vLLM's default; there they are batches, here events


@dataclass(frozen=True)
class BlockStored:
    """Blocks that follow one another in a text can be found from now on."""

    block_hashes: list[bytes]
    parent_block_hash: bytes | None  # of the block before the first of these; None: the text begins here
    token_ids: list[int]  # of all these blocks
    block_size: int
    lora_id: None = None
    medium: str | None = None  # where K and V are: "GPU" or "CPU"
    lora_name: None = None
    extra_keys: Sequence[tuple[str, ...] | None] | None = None  # of each block; of the first of a text its cache_salt
    group_idx: int | None = None  # KV cache group, if the model has several, or windows
    kv_cache_spec_kind: str | None = None  # of this group: "full_attention" or "sliding_window"
    kv_cache_spec_sliding_window: int | None = None

    def apart(self) -> Iterable[BlockStored]:
        """The same, one block at a time."""
        parent = self.parent_block_hash
        for i, block_hash in enumerate(self.block_hashes):
            token_ids = self.token_ids[i * self.block_size : (i + 1) * self.block_size]
            extra_keys = self.extra_keys and [self.extra_keys[i]]
            own = {"block_hashes": [block_hash], "parent_block_hash": parent, "token_ids": token_ids}
            yield BlockStored(**vars(self) | own | {"extra_keys": extra_keys})
            parent = block_hash


@dataclass(frozen=True)
class BlockRemoved:
    """Blocks cannot be found any more: they were evicted."""

    block_hashes: list[bytes]
    medium: str | None = None
    group_idx: int | None = None


@dataclass(frozen=True)
class AllBlocksCleared:
    """Nothing can be found any more."""


KVCacheEvent: TypeAlias = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(frozen=True)
class KVEventBatch:
    """Events in the order in which they happened."""

    ts: float  # seconds since 1970, when the batch was made
    events: list[KVCacheEvent]
    seq: int  # the number of the last of these events; they are numbered from 1
    data_parallel_rank: int | None = None

    def as_json(self) -> dict[str, Any]:
        """With hashes in hexadecimal, and each event's `type`."""
        events = [{"type": type(event).__name__} | in_hexadecimal(asdict(event)) for event in self.events]
        return {"seq": self.seq, "ts": self.ts, "events": events, "data_parallel_rank": self.data_parallel_rank}


class KVMirror:
    """What a prefix cache knows, from its events alone."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, BlockStored] = {}  # hash -> the event of this block by itself

    def apply(self, event: KVCacheEvent) -> None:
        if isinstance(event, BlockStored):
            self.blocks.update((each.block_hashes[0], each) for each in event.apart())
        elif isinstance(event, BlockRemoved):
            for block_hash in event.block_hashes:
                self.blocks.pop(block_hash, None)
        else:
            self.blocks.clear()


class KVEvents:
    """The newest events of one prefix cache. Whoever tells them never waits for those who read.

    Args:
        buffer_steps: events that are kept for a subscriber who is behind. One who is further behind, or comes later,
            is told instead to clear everything, and then what there is: so it misses nothing, and nothing piles up.
        data_parallel_rank: which replica this is, if there are several.
    """

    def __init__(self, buffer_steps: int = BUFFER_STEPS, data_parallel_rank: int | None = None) -> None:
        require_positive(buffer_steps=buffer_steps)
        self.data_parallel_rank = data_parallel_rank
        self.mirror = KVMirror()
        self._lock = threading.Lock()
        self._newest: deque[KVCacheEvent] = deque(maxlen=min(buffer_steps, sys.maxsize))
        self._seq = 0  # of the last event
        self._subscribers: set[Subscriber] = set()

    def tell(self, event: KVCacheEvent) -> None:
        with self._lock:
            self.mirror.apply(event)
            self._newest.append(event)
            self._seq += 1
            waiting = [each for each in self._subscribers if each.seq == self._seq - 1]
        for each in waiting:  # the others have been woken, and not come yet
            each.wake()

    def subscribe(self, wake: Callable[[], None] = lambda: None, after: int | None = None) -> Subscriber:
        """Somebody reads from now on.

        Args:
            wake: called, from any thread, when there is something to take again.
            after: the `seq` of the last batch that this reader has; None: it has nothing yet.
        """
        with self._lock:
            subscriber = Subscriber(self, wake, -1 if after is None else after)
            self._subscribers.add(subscriber)
            return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        with self._lock:
            self._subscribers.discard(subscriber)

    def take(self, subscriber: Subscriber) -> KVEventBatch | None:
        with self._lock:
            num_new = self._seq - subscriber.seq
            if num_new == 0:
                return None
            events: list[KVCacheEvent] = [AllBlocksCleared(), *self.mirror.blocks.values()]
            if subscriber.seq >= 0 and 0 < num_new <= len(self._newest):
                events = list(islice(self._newest, len(self._newest) - num_new, None))
            subscriber.seq = self._seq
            return KVEventBatch(time.time(), events, self._seq, self.data_parallel_rank)


@dataclass(eq=False)
class Subscriber:
    """One that reads the events."""

    events: KVEvents
    wake: Callable[[], None]
    seq: int  # of the last event that it has; -1: it knows nothing

    def take(self) -> KVEventBatch | None:
        """All that is new; None if nothing is."""
        return self.events.take(self)


class Announced(PrefixCache):
    """Made one with a prefix cache of any kind: it goes on as before, and tells `events` what has changed."""

    events: KVEvents
    medium: str

    def publish(self, table: BlockTable, token_ids: Sequence[int], salt: str = "") -> None:
        num_known, first = len(self._block_of), max(0, len(table.block_hashes) - 1)
        try:
            super().publish(table, token_ids, salt)
        finally:  # even if it was interrupted: what can be found has been told
            new = {*islice(reversed(self._block_of), len(self._block_of) - num_known)}  # a dict's newest come last
            self._tell(new, table.block_hashes, first, token_ids, salt)

    def find(self, token_ids: Sequence[int], salt: str = "") -> Prefix:
        """What has come back from a tier below is told as soon as it is found (memory/offload.py)."""
        found = super().find(token_ids, salt)
        known = {self._hash_of[block] for block in found.blocks if block in self._hash_of}
        self._tell(known - self.events.mirror.blocks.keys(), found.block_hashes, 0, token_ids, salt)
        return found

    def _tell(self, new: set[bytes], chain: list[bytes], first: int, token_ids: Sequence[int], salt: str) -> None:
        for group_idx in groups_of(self) if new else ():
            for event in self._stored(new, chain, first, token_ids, salt, group_idx):
                self.events.tell(event)

    def _stored(
        self, new: set[bytes], chain: list[bytes], first: int, token_ids: Sequence[int], salt: str, group: int | None
    ) -> Iterable[BlockStored]:
        """One event for each run of new blocks. `chain`: the hashes of the text, from the root on."""
        size, windows = self.pool.block_size, getattr(self, "windows", (EVERYTHING,))
        hashes = chain if group is None else [key(block_hash, group) for block_hash in chain]
        window = None if windows[group or 0] == EVERYTHING else windows[group or 0]
        for is_new, run in groupby(range(first, len(chain) - 1), key=lambda i: hashes[1 + i] in new):
            i, *others = run
            end = i + 1 + len(others)
            begins = i == 0 and chain[0] == self.root_hash(salt)  # and not before a reset: nobody finds that
            if is_new:
                yield BlockStored(
                    block_hashes=hashes[1 + i : 1 + end],
                    parent_block_hash=None if begins else hashes[i],
                    token_ids=list(token_ids[i * size : end * size]),
                    block_size=size,
                    medium=self.medium,
                    extra_keys=[(salt,), *[None] * len(others)] if i == 0 and salt else None,
                    group_idx=group,
                    kv_cache_spec_kind="sliding_window" if window else "full_attention",
                    kv_cache_spec_sliding_window=window,
                )

    def forget(self, block: int) -> None:
        block_hash = self._hash_of.get(block)
        super().forget(block)
        known = self.events.mirror.blocks.get(block_hash) if block_hash else None
        if known:
            self.events.tell(BlockRemoved(known.block_hashes, self.medium, known.group_idx))

    def reset(self) -> None:
        super().reset()
        self.events.tell(AllBlocksCleared())


def announce(scheduler: Scheduler, config: Mapping[str, Any], medium: str = "CPU") -> KVEvents | None:
    """Let the prefix cache of a scheduler announce its blocks.

    Args:
        config: vLLM's `kv_events_config`: {"enable_kv_cache_events": True, "buffer_steps": 10_000}.

    Returns None if they are not enabled. Raises ConfigurationError.
    """
    options = read_config(config)
    cache = scheduler.prefix_cache
    if not options.pop("enable_kv_cache_events"):
        return None
    if not isinstance(cache, PrefixCache):
        raise ConfigurationError(
            "kv_events_config has events of the prefix cache, and there is none: set enable_prefix_caching as well."
        )
    events = KVEvents(**options)
    # NOTE: it becomes a subclass of what it was, of whichever kind it is; nothing has been stored in it yet.
    cache.__class__ = type(f"Announced{type(cache).__name__}", (Announced, type(cache)), {})
    assert isinstance(cache, Announced)
    cache.pool.on_evict = cache.forget  # which was the method of its old class
    cache.events, cache.medium = events, medium
    return events


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    known = {"enable_kv_cache_events": False, "buffer_steps": BUFFER_STEPS, "data_parallel_rank": None}
    if not isinstance(config, Mapping):
        raise ConfigurationError(f'kv_events_config is {shown(config)}; give {{"enable_kv_cache_events": True}}.')
    for name in config:
        if name not in known:
            raise ConfigurationError(
                f"kv_events_config has {name!r}; known are {', '.join(known)}. Nothing is published to a socket: a "
                "server answers GET /kv_events, and in a program there is llm.kv_events.subscribe()."
            )
    options = known | dict(config)
    if not isinstance(options["enable_kv_cache_events"], bool):
        raise ConfigurationError("kv_events_config: enable_kv_cache_events must be True or False.")
    return options


def groups_of(cache: PrefixCache) -> Iterable[int | None]:
    return range(len(cache.windows)) if isinstance(cache, GroupPrefixCache) else (None,)


def in_hexadecimal(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: in_hexadecimal(part) for name, part in value.items()}
    if isinstance(value, list):
        return [in_hexadecimal(part) for part in value]
    return value.hex() if isinstance(value, bytes) else value
