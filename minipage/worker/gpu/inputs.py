"""The inputs of a step on the GPU: always in the same place, brought there by one copy.

    pinned memory  [ token_ids | positions | slot_mapping | block_tables | context_lens | query_start_loc | sampled ]
                      │ one copy, which nobody waits for
    GPU            [ the same                                                                                       ]

A CUDA graph reads its inputs from where they were when it was captured, so batches of the same number of tokens and
sequences are always laid out in the same way, from the beginning of one buffer. A batch may be padded: a token with
slot -1 is written nowhere, and a sequence with a context of 0 reads nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from minipage.worker.batch import Batch

NO_SLOT = -1  # of a token that only fills up a batch


class StepInputs:
    """Room for the inputs of any step, in pinned memory and on the device. All are int32."""

    def __init__(self, max_num_tokens: int, max_num_seqs: int, max_blocks: int, device: torch.device) -> None:
        self.max_blocks = max_blocks  # columns of every block table
        size = 4 * max_num_tokens + (max_blocks + 2) * max_num_seqs + 1
        is_on_gpu = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.int32, pin_memory=is_on_gpu)  # [size]
        self._device = torch.zeros(size, dtype=torch.int32, device=device)  # [size]
        self.places = lru_cache(100)(self._places)  # decodes of one size come again and again
        self._copied = torch.cuda.Event() if is_on_gpu else None  # type: ignore[no-untyped-call]

    def load(self, batch: Batch, num_tokens: int, num_seqs: int, are_decodes: bool) -> Batch:
        """Bring a batch to the device, padded to num_tokens tokens and to num_seqs sequences and rows.

        are_decodes: each sequence has one token, and so have those that fill it up; otherwise these have none.
        """
        if self._copied:
            self._copied.synchronize()  # until the last step's inputs have left the buffer; they have, long ago
        host, device = self.places(num_tokens, num_seqs, max(num_seqs, len(batch.sampled_rows)))
        for name, place, array in zip(Batch._fields, host, batch, strict=True):
            if place.shape != array.shape:  # the rest is padding
                place[...] = NO_SLOT if name == "slot_mapping" else 0
            place[tuple(map(slice, array.shape))] = array
        if are_decodes:
            host.query_start_loc[:] = np.arange(num_seqs + 1)
            host.sampled_rows[:] = np.arange(num_seqs)
        else:
            host.query_start_loc[len(batch.query_start_loc) :] = len(batch.token_ids)
        used = sum(array.size for array in host)
        self._device[:used].copy_(self._host[:used], non_blocking=True)
        if self._copied:
            self._copied.record()
        return device

    def _places(self, *sizes: int) -> tuple[Batch, Batch]:
        """Where the inputs of such a batch are in pinned memory, and on the device."""
        return self._carve(self._host.numpy(), *sizes), self._carve(self._device, *sizes)

    def _carve(self, buffer: Any, num_tokens: int, num_seqs: int, num_rows: int) -> Batch:
        """Pieces of a flat buffer [size], one after the other, with the shapes that Batch says."""
        shapes = [(num_tokens,)] * 3 + [(num_seqs, self.max_blocks), (num_seqs,), (num_seqs + 1,), (num_rows,)]
        pieces = []
        start = 0
        for shape in shapes:
            stop = start + int(np.prod(shape))
            pieces.append(buffer[start:stop].reshape(shape))
            start = stop
        return Batch(*pieces)


def token_by_token(batch: Batch) -> Batch:
    """The same tokens, each as a sequence of its own: of one that has several, all have its blocks.

    What a token sees of its sequence is what comes before it, so nothing else is computed, provided that all K and V
    are written before any are read.
    """
    each = np.repeat(np.arange(len(batch.context_lens)), np.diff(batch.query_start_loc))  # [T], the sequence of each
    return batch._replace(
        block_tables=batch.block_tables[each],
        context_lens=batch.positions + 1,
        query_start_loc=np.arange(len(each) + 1),
        sampled_rows=np.arange(len(each)),
    )
