"""The memory of an offload tier (memory/offload.py) for a GPU: pinned memory of the host, and a stream of its own.

A step never waits for a copy. What the tier asks for is done together, before a step writes anything:

    steps' stream  gather evicted blocks │ the step, which writes over them │ steps of others ...
    ours                                 └─▶ what is loaded, into free blocks ─▶ what is saved, to pinned memory

Whoever waits for what is loaded is admitted when it is there; if nobody else runs, that step waits on the GPU. If too
much is on its way to the host, a block is not saved: it is a cache.
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

    most_leaving = 256  # blocks that may wait on the GPU until they are on the host

    def __init__(self, cache: KVCache, num_bytes: int, block_pool: BlockPool) -> None:
        super().__init__(cache, num_bytes)
        self.block_pool = block_pool
        self.device = self.cache.k.device
        self.streams: Any = torch.get_device_module(self.device)  # torch.cuda
        self.stream = self.streams.Stream()
        self._saves: dict[int, int] = {}  # slot: block, to be done
        self._loads: dict[int, int] = {}  # block: slot, to be done, before the saves
        self._leaving: list[tuple[Any, Any]] = []  # rows on the GPU, and the event after which they are on the host
        self._coming: dict[int, Any] = {}  # block: the event after which it is here

    def allocate(self) -> Any:
        return torch.from_numpy(pinned((self.num_slots, self.row_size), "uint8"))  # [num_slots, row_size]

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        self._leaving = [(rows, event) for rows, event in self._leaving if not event.query()]
        num_leaving = len(self._saves) + sum(len(rows) for rows, _ in self._leaving)
        is_here = block not in self._loads and block not in self._coming
        if can_be_saved := is_here and num_leaving < self.most_leaving:
            self._saves[slot] = block
        return can_be_saved

    def load(self, slot: int, block_hash: bytes, block: int) -> bool:
        if slot in self._saves:
            self._send()
        self._loads[block] = slot
        return True

    def is_coming(self, block: int) -> bool:
        return block in self._loads or (block in self._coming and not self._coming[block].query())

    def before_writing(self) -> None:
        self._send()
        for block, event in list(self._coming.items()):
            if self.block_pool.ref_count(block) or event.query():
                self.streams.current_stream().wait_event(event)
                del self._coming[block]

    def _send(self) -> None:
        """Do what was asked for. What is loaded may go to where saved blocks were, and come from where others go."""
        saves, loads = sorted(self._saves.items()), sorted((slot, block) for block, slot in self._loads.items())
        self._saves, self._loads = {}, {}
        if not saves and not loads:
            return
        leaving = torch.empty(len(saves), self.row_size, dtype=torch.uint8, device=self.device)  # [n, row_size]
        for array, part in self.parts(leaving):
            part.copy_(array[:, self._blocks(saves)].transpose(0, 1))  # [n, num_layers, block_size, ...]
        self.stream.wait_stream(self.streams.current_stream())
        with self.streams.stream(self.stream):
            coming = leaving.new_empty(len(loads), self.row_size)  # [m, row_size]
            for here, there in runs(loads):
                coming[here].copy_(self.rows[there], non_blocking=True)  # [run, row_size]
            for array, part in self.parts(coming):
                array[:, self._blocks(loads)] = part.transpose(0, 1)  # [num_layers, m, block_size, ...]
            self._coming |= dict.fromkeys((block for _, block in loads), self.stream.record_event())
            for here, there in runs(saves):
                self.rows[there].copy_(leaving[here], non_blocking=True)  # [run, row_size]
            self._leaving.append((leaving, self.stream.record_event()))

    def _blocks(self, moves: list[tuple[int, int]]) -> torch.Tensor:
        blocks = torch.tensor([block for _, block in moves], dtype=torch.int64)  # [n]
        return blocks.to(self.device, non_blocking=True)  # [n]


def runs(moves: list[tuple[int, int]]) -> Iterator[tuple[slice, slice]]:
    """Which of these (slot, block) have slots next to each other, and those slots: one copy moves them all."""
    for gap, run in groupby(enumerate(slot for slot, _ in moves), key=lambda each: each[1] - each[0]):
        places = [i for i, _ in run]
        yield slice(places[0], places[-1] + 1), slice(gap + places[0], gap + places[-1] + 1)
