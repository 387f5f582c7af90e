"""Draws as a CUDA graph: a token from each row, in order, all in the same way, with their settings always in one place.

To draw with top_k or top_p is about 80 launches (draw.py), which takes a host longer than the GPU, and even greedy
tokens are several. A batch of decodes has its logits in the same place again and again, so its draws can be replayed:

    settings    temperature  [ 0.8 0.8 0 ... ]       written before each replay; greedy rows have temperature 0
                top_k        [  50  50 0 ... ]
                number       [ .31 .92 0 ... ]

The tokens are those of `draw_on_device`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch

from minipage.sampling import NO_TOKEN, Draw
from minipage.worker.gpu.draw import LARGE, Settings, draw_from_all, draw_from_likeliest, upload

How = Literal["greedy", "all", "likeliest"]  # the likeliest token of each row; of all tokens; of the top_k or top_p
DRAW: dict[How, Callable[[torch.Tensor, Settings], torch.Tensor]] = {
    "all": draw_from_all,
    "likeliest": draw_from_likeliest,
}


def how_in_order(draws: Sequence[tuple[int, Draw]]) -> How | None:
    """How all rows but the greedy ones are drawn; None: in several ways, or not in order."""
    if [row for row, _ in draws] != list(range(len(draws))):
        return None
    each = {id(draw.params): draw.params for _, draw in draws}.values()  # usually one for many
    is_filtered = {params.top_k > 0 or params.top_p < 1 for params in each if params.temperature > 0}
    if len(is_filtered) == 2:
        return None
    return "greedy" if not is_filtered else "likeliest" if is_filtered.pop() else "all"


def draw_in_order(logits: torch.Tensor, settings: Settings, how: How) -> torch.Tensor:
    """[size, V] -> [size] tokens; UNSURE and NO_TOKEN as in draw.py."""
    highest, tokens = logits.max(dim=-1)  # [size] each
    if how != "greedy":
        tokens = DRAW[how](logits, settings).where(settings.temperature[:, 0] > 0, tokens)  # [size]
    return tokens.where(highest.abs() < math.inf, NO_TOKEN)  # [size]


class SettingsInPlace:
    """The settings of at most `most` draws, where graphs read them."""

    def __init__(self, most: int, device: torch.device) -> None:
        self._host = np.ones((5, most))
        self._device = torch.ones(5, most, 1, dtype=torch.float64, device=device)  # [5, most, 1]
        self.first = lru_cache(100)(self._first)  # the same sizes come again and again

    def load(self, draws: Sequence[tuple[int, Draw]], size: int, how: How) -> Settings:
        """Bring them to the device, if they matter; [size, 1] each, of which some may be padding."""
        if how != "greedy":
            params = {id(draw.params): draw.params for _, draw in draws}
            table = np.array([(p.temperature, min(p.top_k, LARGE), p.top_p, p.min_p) for p in params.values()])
            places = {key: place for place, key in enumerate(params)}
            rows = [places[id(draw.params)] for _, draw in draws]  # [num_draws], of the table
            self._host[:4, : len(draws)] = table[rows].T  # [4, num_draws]
            self._host[4, : len(draws)] = [draw.number for _, draw in draws]
            self._device.copy_(upload(self._host, self._device.device, torch.float64)[:, :, None])
        return self.first(size)

    def _first(self, size: int) -> Settings:
        return Settings(*self._device[:, :size])  # [size, 1] each
