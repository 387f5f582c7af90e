"""Steps that are launched ahead: the tokens of one go to the next on the device, and to the host when it asks.

    step 1   logits ─▶ draw ─▶ drawn      [ 17  4  9 ] ─▶ pinned memory ─▶ the host, one step late
                                 │
    step 2            token_ids  [ ~0  5 ~2 ] ─▶ [ 17 5 9 ]      the first thing that is done, inside the CUDA graph

Nothing here waits, except who asks for the tokens: for an event behind the draws, while the next step is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from minipage.model.architecture import Array
from minipage.worker.gpu.draw import UNSURE
from minipage.worker.gpu.fused import current_stream, launch_put
from minipage.worker.gpu.views import view_for_kernels

Tokens = list[int | None]


class Drawn:
    """The tokens of the last step's draws, at most `most` of them."""

    def __init__(self, most: int, device: torch.device) -> None:
        is_on_gpu = device.type == "cuda"
        self._tokens = torch.zeros(most, dtype=torch.int32, device=device)  # [most]
        # Two, as two steps may be on their way; each with its array of NumPy, which is quicker to read.
        self._places = [self._place(most, is_on_gpu), self._place(most, is_on_gpu)]
        self._is_on_gpu = is_on_gpu

    @staticmethod
    def _place(most: int, is_on_gpu: bool) -> tuple[torch.Tensor, Array, Any]:
        pinned = torch.zeros(most, dtype=torch.int32, pin_memory=is_on_gpu)  # [most]
        return pinned, pinned.numpy(), torch.cuda.Event() if is_on_gpu else None  # type: ignore[no-untyped-call]

    def put_into(self, token_ids: Array) -> Array:
        """[T] -> [T], in which ~i is the i-th token drawn."""
        known = torch.empty_like(token_ids)  # [T]
        given, drawn, out = map(view_for_kernels, (token_ids, self._tokens, known))
        launch_put(given, drawn, out, stream=current_stream() if self._is_on_gpu else 0)
        return known  # [T]

    def keep(self, tokens: torch.Tensor) -> Callable[[], Tokens]:
        """Keep tokens [num_draws] for the next step; what is returned waits for them."""
        num_draws = len(tokens)
        tokens = self._tokens[:num_draws].copy_(tokens)  # [num_draws], in int32
        self._places.reverse()  # at once: an interrupt may come between any two lines
        pinned, seen, event = self._places[0]  # [most], [most]
        pinned[:num_draws].copy_(tokens, non_blocking=True)
        if event:
            event.record()

        def wait() -> Tokens:
            if event:
                event.synchronize()
            found: Tokens = seen[:num_draws].tolist()
            return found if UNSURE not in found else [None if token == UNSURE else token for token in found]

        return wait
