"""The memory of an offload tier (memory/offload.py) for a GPU: pinned memory of the host, and a stream of its own.

A step never waits for a copy. What the tier asks for is done together, before a step writes anything:

    this stream    gather evicted blocks │ the step, which writes over them                  microseconds, on the GPU
    side stream                          └─▶ to pinned memory ─▶ ...                         while steps are computed

    side stream    from pinned memory ─▶ scatter into free blocks ─▶ event
    this stream    steps of others                                     │ the step of the text that waited for them

If somebody takes such a block before it has come, that step waits on the GPU. If too much is on its way to the host,
a block is not saved: it is a cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from minipage.attention import KVCache
from minipage.attention.cuda.device_arrays import pinned
from minipage.memory import BlockPool
from minipage.worker.offload import HostStore

MOST_ON_ITS_WAY = 2**30  # bytes on the GPU that wait to be copied to the host


class PinnedStore(HostStore):
    """Slots in pinned memory."""

    def __init__(self, cache: KVCache, num_bytes: int, block_pool: BlockPool) -> None:
        self.block_pool = block_pool
        where: Any = cache.k
        self.device = where.device
        self.is_on_gpu = self.device.type == "cuda"  # otherwise a test
        self.streams: Any = torch.get_device_module(self.device)  # torch.cuda
        self.side = self.streams.Stream()
        self._saves: list[tuple[int, int]] = []  # (slot, block), to be done
        self._loads: list[tuple[int, int]] = []
        self._leaving: deque[tuple[Any, int]] = deque()  # (event, how many blocks are on the host then)
        self._coming: dict[int, Any] = {}  # block -> the event after which it is here
        super().__init__(cache, num_bytes)

    def allocate(self) -> Any:
        shape = self.num_slots, self.row_size
        return torch.from_numpy(pinned(shape, "uint8") if self.is_on_gpu else super().allocate())

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        if any(slot == other for other, _ in self._loads):  # before it is overwritten
            self._send()
        while self._leaving and self._leaving[0][0].query():
            self._leaving.popleft()
        num_waiting = len(self._saves) + sum(count for _, count in self._leaving)
        is_here = block not in self._coming and all(block != other for _, other in self._loads)
        if can_be_saved := is_here and num_waiting * self.row_size < MOST_ON_ITS_WAY:
            self._saves.append((slot, block))
        return can_be_saved

    def load(self, slot: int, block_hash: bytes, block: int) -> bool:
        self._loads.append((slot, block))
        return True

    def is_coming(self, block: int) -> bool:
        self._send()
        return block in self._coming and not self._coming[block].query()

    def before_writing(self) -> None:
        self._send()
        for block, event in list(self._coming.items()):
            if self.block_pool.ref_count(block) or event.query():
                self.streams.current_stream().wait_event(event)
                del self._coming[block]

    def _send(self) -> None:
        """Do what was asked for, the saves first: what is loaded may go where they come from."""
        if self._saves:
            slots, blocks = zip(*self._saves)
            self._saves = []
            rows = self._rows(len(blocks))  # [n, row_size]
            index = self._index(blocks)  # [n]
            for array, part in self.parts(rows):
                part.copy_(array.index_select(1, index).transpose(0, 1))  # [n, num_layers, block_size, ...]
            self.side.wait_stream(self.streams.current_stream())
            with self.streams.stream(self.side):
                for slot, row in zip(slots, rows):
                    self.rows[slot].copy_(row, non_blocking=True)  # [row_size]
                self._leaving.append((self.side.record_event(), len(blocks)))
            self._keep_for_side_stream(rows)
        if self._loads:
            slots, blocks = zip(*self._loads)
            self._loads = []
            self.side.wait_stream(self.streams.current_stream())
            with self.streams.stream(self.side):
                index = self._index(blocks)  # [n]
                rows = self._rows(len(blocks))  # [n, row_size]
                for slot, row in zip(slots, rows):
                    row.copy_(self.rows[slot], non_blocking=True)  # [row_size]
                for array, part in self.parts(rows):
                    array.index_copy_(1, index, part.transpose(0, 1))  # [num_layers, n, block_size, ...]
                event = self.side.record_event()
            self._coming |= dict.fromkeys(blocks, event)

    def _rows(self, count: int) -> torch.Tensor:
        return torch.empty(count, self.row_size, dtype=torch.uint8, device=self.device)  # [count, row_size]

    def _index(self, blocks: Sequence[int]) -> torch.Tensor:
        index = torch.tensor(blocks)  # [n]
        return index.pin_memory().to(self.device, non_blocking=True) if self.is_on_gpu else index  # [n]

    def _keep_for_side_stream(self, rows: torch.Tensor) -> None:
        """Not to be reused before that stream is done with it."""
        if self.is_on_gpu:
            rows.record_stream(self.side)
