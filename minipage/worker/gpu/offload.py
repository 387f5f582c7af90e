"""The memory of an offload tier (memory/offload.py) for a GPU: pinned memory of the host, and a stream of its own.

A step never waits for a copy. What the tier asks for is done together, before a step writes anything:

    steps' stream  evicted blocks, to rows of their own │ the step, which writes over them │ steps of others ...
    ours                                                └─▶ what is loaded, to its blocks ─▶ those rows, to their slots

Whoever waits for what is loaded is admitted when it is there; if nobody else runs, that step waits on the GPU.
"""

from __future__ import annotations

from typing import Any

import torch

from minipage.attention import KVCache
from minipage.attention.cuda.device_arrays import pinned
from minipage.memory import BlockPool
from minipage.worker.offload import parts

cuda: Any = torch.cuda  # whose methods have no types
MOST = 256  # blocks that go one way together, and so have rows on the GPU


class PinnedStore:
    """Slots in pinned memory, at most `num_bytes`."""

    def __init__(self, cache: KVCache, num_bytes: int, block_pool: BlockPool) -> None:
        self.cache, self.block_pool, self.device = cache, block_pool, cache.k.device
        row_size = cache.nbytes // cache.k.shape[1]  # bytes of a block
        self.rows = torch.from_numpy(pinned((num_bytes // row_size, row_size), "uint8"))  # [num_slots, row_size]
        self.names = [b""] * len(self.rows)
        self.saves: dict[int, int] = {}  # slot: block, to be done
        self.loads: dict[int, int] = {}  # block: slot, to be done
        self.leaving: dict[int, torch.Tensor] = {}  # slot: its row [row_size], on the GPU
        self.coming: dict[int, Any] = {}  # block: the event after which it is here
        self.side = cuda.Stream()

    def save(self, slot: int, block_hash: bytes, block: int) -> bool:
        if can_be_saved := not self.is_coming(block) and len(self.saves) < MOST:  # if not, never mind: it is a cache
            self.saves[slot] = block
        return can_be_saved

    def load(self, slot: int, block_hash: bytes, block: int) -> bool:
        if slot in self.saves or slot in self.leaving or len(self.loads) == MOST:
            self.send()
        self.loads[block] = slot
        return True

    def is_coming(self, block: int) -> bool:
        """Whether what was loaded into a block is still on its way."""
        return block in self.loads or (block in self.coming and not self.coming[block].query())

    def before_writing(self) -> None:
        """A step is about to write to the pool."""
        if self.saves or self.loads or self.leaving:
            self.send()
        for block in [b for b, event in self.coming.items() if self.block_pool.ref_count(b) or event.query()]:
            cuda.current_stream().wait_event(self.coming.pop(block))

    def send(self) -> None:
        """Do what was asked for. What is loaded may go to where saved blocks were, and come from where others go."""
        if self.saves:
            blocks, rows = self.rows_for([*self.saves.values()])
            for array, part in parts(self.cache, rows):
                part.copy_(array[:, blocks].swapaxes(0, 1))  # [n, num_layers, block_size, ...]
            self.leaving |= zip(self.saves, rows)
            self.saves.clear()
        self.side.wait_stream(cuda.current_stream())
        with cuda.stream(self.side):
            if self.loads:
                blocks, rows = self.rows_for([*self.loads])
                for row, slot in zip(rows, self.loads.values()):
                    row.copy_(self.rows[slot], non_blocking=True)  # [row_size]
                for array, part in parts(self.cache, rows):
                    array[:, blocks] = part.swapaxes(0, 1)  # [num_layers, n, block_size, ...]
                self.coming |= dict.fromkeys(self.loads, self.side.record_event())
                self.loads.clear()
            for slot, row in self.leaving.items():
                self.rows[slot].copy_(row, non_blocking=True)  # [row_size]
                row.record_stream(self.side)  # until then nobody else gets its memory
            self.leaving.clear()

    def rows_for(self, blocks: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """On the GPU, the numbers of n blocks, [n], and new rows for them, [n, row_size]."""
        numbers = torch.tensor(blocks).to(self.device, non_blocking=True)  # [n]; for a list PyTorch would wait
        return numbers, torch.empty(len(numbers), self.rows.shape[1], dtype=torch.uint8, device=self.device)

    def clear(self) -> None:
        """Whoever knows no hash loads nothing."""
