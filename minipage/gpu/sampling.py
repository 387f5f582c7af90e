"""`minipage.sampling.sample_batch` on the GPU: the same rules for all rows at once, and one wait for all tokens.

    greedy rows      the place of the maximum
    the others       temperature, top_k, top_p and min_p as in `probabilities`, in float64 too; then the first token
                     whose cumulative probability exceeds the number that the host has drawn for it

Only a row with forbidden tokens is fetched, and chosen from by the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from minipage.sampling import Draw, sample


def sample_on_device(logits: torch.Tensor, draws: Sequence[tuple[int, Draw]]) -> list[int]:
    """A token for each draw, from the row of logits [num_rows, V] that is named before it."""
    tokens, rows = logits.argmax(dim=-1), [row for row, _ in draws]  # [num_rows]
    if rows != list(range(len(tokens))):
        tokens = tokens[upload(rows, logits.device)]  # [num_draws]
    drawn = [i for i, (_, draw) in enumerate(draws) if draw.params.temperature > 0]
    if drawn:
        tokens[upload(drawn, logits.device)] = draw_tokens(logits, [draws[i] for i in drawn])
    chosen: list[int] = tokens.tolist()  # here the host waits for the GPU
    for i, (row, draw) in enumerate(draws):
        if draw.forbidden:
            chosen[i] = sample(logits[row].float().cpu().numpy(), *draw)
    return chosen


def draw_tokens(logits: torch.Tensor, draws: Sequence[tuple[int, Draw]]) -> torch.Tensor:
    """[num_draws] tokens; no draw is greedy."""
    rows = upload([row for row, _ in draws], logits.device)  # [num_draws]
    settings = [(d.params.temperature, d.params.top_k, d.params.top_p, d.params.min_p, d.number) for _, d in draws]
    columns = upload(settings, logits.device, torch.float64).T[:, :, None]  # [5, num_draws, 1]
    temperature, top_k, top_p, min_p, number = columns  # each [num_draws, 1]
    scaled = logits[rows].double()  # [num_draws, V]
    scaled = (scaled - scaled.amax(dim=-1, keepdim=True)) / temperature  # [num_draws, V]
    p = scaled.softmax(dim=-1)  # [num_draws, V]
    if any(draw.params.top_k > 0 or draw.params.top_p < 1 for _, draw in draws):
        p = keep_likeliest(p, top_k, top_p)  # [num_draws, V]
    p = p.where(p >= min_p * p.amax(dim=-1, keepdim=True), 0)  # [num_draws, V]
    cumulative = p.cumsum(dim=-1)  # [num_draws, V]
    return torch.searchsorted(cumulative, number * cumulative[:, -1:], right=True)[:, 0]  # [num_draws]


def keep_likeliest(p: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """[N, V] probabilities -> [N, V] with 0 for all but the top_k [N, 1], and of these but the top_p [N, 1]."""
    likely_first, order = p.sort(dim=-1, descending=True, stable=True)  # [N, V] each
    rank = torch.arange(p.shape[1], device=p.device)  # [V]
    likely_first = likely_first.where((top_k <= 0) | (rank < top_k), 0)  # [N, V]
    reached_before = likely_first.cumsum(dim=-1) - likely_first  # [N, V]; probability of all likelier tokens
    enough = (top_p < 1) & (reached_before >= top_p * likely_first.sum(dim=-1, keepdim=True))  # [N, V]
    return torch.zeros_like(p).scatter(-1, order, likely_first.where(~enough, 0))  # [N, V]


def upload(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Numbers of the host as a tensor on the device, which nobody waits for."""
    host = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
