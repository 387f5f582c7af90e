"""The memory of an offload tier (memory/offload.py) for a GPU: pinned memory of the host, and streams of its own.

A step never waits for a copy. What the tier asks for is done together, before a step writes anything:

    this stream    gather evicted blocks │ the step, which writes over them            microseconds, on the GPU
    saving                               └─▶ to pinned memory ─▶ ...                   while steps are computed

    loading        from pinned memory ─▶ scatter into free blocks ─▶ event             a GPU copies both ways at once
    this stream    steps of others                                     │ the step of the text that waited for them

If somebody takes such a block before it has come, that step waits on the GPU. If too much is on its way to the host,
a block is not saved: it is a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch

from minipage.attention import KVCache
from minipage.attention.cuda.device_arrays import pinned
from minipage.memory import BlockPool
from minipage.worker.offload import HostStore


class PinnedStore(HostStore):
    """Slots in pinned memory."""

    def __init__(self, cache: KVCache, num_bytes: int, block_pool: BlockPool) -> None:
        self.block_pool = block_pool
        where: Any = cache.k
        self.device = where.device
        self.is_on_gpu = self.device.type == "cuda"  # otherwise a test
        self.streams: Any = torch.get_device_module(self.device)  # torch.cuda
        self.saving, self.loading = self.streams.Stream(), self.streams.Stream()
        self._saves: list[tuple[int, int]] = []  # (slot, block), to be done
        self._loads: list[tuple[int, int]] = []
        self._leaving: dict[int, Any] = {}  # slot -> the event after which it is saved, in the order of these
        self._coming: dict[int, Any] = {}  # block -> the event after which it is here
        super().__init__(cache, num_bytes)
        memory = torch.cuda.get_device_properties(self.device).total_memory if self.is_on_gpu else 2**30
        self.most_leaving = memory // 32 // self.row_size  # blocks that wait on the GPU until they are on the host

    def allocate(self) -> Any:
        shape = self.num_slots, self.row_size
        return torch.from_numpy(pinned(shape, "uint8") if self.is_on_gpu else super().allocate())

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        if any(slot == other for other, _ in self._loads):  # before it is overwritten
            self._send()
        for saved in list(self._leaving):
            if not self._leaving[saved].query():
                break
            del self._leaving[saved]
        is_here = block not in self._coming and all(block != other for _, other in self._loads)
        if can_be_saved := is_here and len(self._saves) + len(self._leaving) < self.most_leaving:
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
            saves = sorted(dict(self._saves).items())  # of several into one slot, the last
            self._saves = []
            rows = self._rows(len(saves))  # [n, row_size]
            index = self._index(saves)  # [n]
            for array, part in self.parts(rows):
                part.copy_(array.index_select(1, index).transpose(0, 1))  # [n, num_layers, block_size, ...]
            self.saving.wait_stream(self.streams.current_stream())
            self.saving.wait_stream(self.loading)  # slots that are overwritten have been read
            with self.streams.stream(self.saving):
                for here, there in runs(saves):
                    self.rows[there].copy_(rows[here], non_blocking=True)  # [n, row_size]
                event = self.saving.record_event()
            for slot, _ in saves:
                self._leaving.pop(slot, None)
                self._leaving[slot] = event
            if self.is_on_gpu:
                rows.record_stream(self.saving)  # not to be reused before
        if self._loads:
            loads = sorted(self._loads)
            self._loads = []
            self.loading.wait_stream(self.streams.current_stream())
            for event in {id(event): event for slot, _ in loads if (event := self._leaving.get(slot))}.values():
                self.loading.wait_event(event)
            with self.streams.stream(self.loading):
                index = self._index(loads)  # [n]
                rows = self._rows(len(loads))  # [n, row_size]
                for here, there in runs(loads):
                    rows[here].copy_(self.rows[there], non_blocking=True)  # [n, row_size]
                for array, part in self.parts(rows):
                    array.index_copy_(1, index, part.transpose(0, 1))  # [num_layers, n, block_size, ...]
                event = self.loading.record_event()
            self._coming |= {block: event for _, block in loads}

    def _rows(self, count: int) -> torch.Tensor:
        return torch.empty(count, self.row_size, dtype=torch.uint8, device=self.device)  # [count, row_size]

    def _index(self, moves: list[tuple[int, int]]) -> torch.Tensor:
        index = torch.tensor([block for _, block in moves])  # [n]
        return index.pin_memory().to(self.device, non_blocking=True) if self.is_on_gpu else index  # [n]


def runs(moves: list[tuple[int, int]]) -> Iterator[tuple[slice, slice]]:
    """Which of these moves are next to each other, and their slots, too: one copy moves them all."""
    for _, run in groupby(enumerate(moves), key=lambda each: each[1][0] - each[0]):
        places = [(i, slot) for i, (slot, _) in run]
        (i, slot), count = places[0], len(places)
        yield slice(i, i + count), slice(slot, slot + count)
