"""`minipage.sampling.sample_batch` on the GPU: the same rules for all rows at once, and one wait for all tokens.

    greedy rows             the place of the maximum
    temperature, min_p      probabilities in float64, as in `minipage.sampling`; then the first token whose cumulative
                            probability exceeds the number that the host has drawn for it
    top_k, top_p as well    the same, among the MOST likeliest tokens only: to sort a whole vocabulary takes longer than
                            to compute its logits

If MOST tokens may not be enough (only the GPU can tell), the row's answer is UNSURE, and it is done again with all. If
the largest logit is not a finite number, the answer is NO_TOKEN. Logits that a request wants adjusted are copied first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from minipage.sampling import NO_TOKEN, Draw
from minipage.sampling.processors import penalized

MOST = 1024  # tokens that are looked at first
UNSURE = -2  # the answer for a row where MOST tokens may not be enough
LARGE = 2**31  # no vocabulary has as many tokens


def sample_on_device(logits: torch.Tensor, draws: Sequence[tuple[int, Draw]]) -> list[int]:
    """A token for each of the draws, which are (row of logits [num_rows, V], how to draw from it)."""
    if any(draw.adjustment for _, draw in draws):
        logits = adjusted(logits, draws)  # [num_draws, V]
        draws = [(i, draw) for i, (_, draw) in enumerate(draws)]
    tokens = draw_on_device(logits, draws)  # [num_draws]
    chosen: list[int] = tokens.tolist()  # here the host waits for the GPU
    if UNSURE in chosen:
        put(tokens, [i for i, token in enumerate(chosen) if token == UNSURE], draw_from_sorted, logits, draws)
        chosen = tokens.tolist()
    return chosen


def draw_on_device(logits: torch.Tensor, draws: Sequence[tuple[int, Draw]]) -> torch.Tensor:
    """[num_draws] tokens, NO_TOKEN or UNSURE, for which nobody has waited; no draw has an adjustment."""
    highest, tokens = logits.max(dim=-1)  # [num_rows] each
    rows = [row for row, _ in draws]
    if rows != list(range(len(tokens))):
        places = upload(rows, logits.device)  # [num_draws]
        highest, tokens = highest[places], tokens[places]  # [num_draws] each
    is_number = highest.abs() < math.inf  # [num_draws]; False for NaN, too
    if drawn := [i for i, (_, draw) in enumerate(draws) if draw.params.temperature > 0]:
        filtered = [i for i in drawn if draws[i][1].params.top_k > 0 or draws[i][1].params.top_p < 1]
        put(tokens, sorted({*drawn} - {*filtered}), draw_from_all, logits, draws)
        put(tokens, filtered, draw_from_likeliest, logits, draws)
    return tokens.where(is_number, NO_TOKEN)  # [num_draws]


def adjusted(logits: torch.Tensor, draws: Sequence[tuple[int, Draw]]) -> torch.Tensor:
    """[num_rows, V] -> [num_draws, V] float32: a row for each draw, with its adjustment made."""
    device, vocab_size = logits.device, logits.shape[1]
    rows = logits[upload([row for row, _ in draws], device)].float()  # [num_draws, V]
    wanted = [(i, draw.adjustment) for i, (_, draw) in enumerate(draws) if draw.adjustment]
    if masks := [(i, adjustment.allowed) for i, adjustment in wanted if adjustment.allowed is not None]:
        masked = upload([i for i, _ in masks], device)  # [num_masked]
        bits = upload(np.stack([each for _, each in masks]), device, torch.uint8)  # [num_masked, ceil(V / 8)]
        is_allowed = unpack(bits)  # [num_masked, V, and up to 7 more]
        rows[masked] = rows[masked].where(is_allowed[:, :vocab_size], -math.inf)  # [num_masked, V]
    places = np.concatenate([i * vocab_size + adjustment.token_ids for i, adjustment in wanted])  # [changed]
    settings = [np.concatenate([adjustment[field] for _, adjustment in wanted]) for field in (1, 2, 3)]
    flat, where = rows.view(-1), upload(places, device)  # [num_draws * V], [changed]
    bias, repetition, penalty = upload(np.stack(settings), device, torch.float32)  # [changed] each
    flat[where] = penalized(flat[where], bias, repetition, penalty, torch.where)  # [changed]
    return rows


def unpack(bits: torch.Tensor) -> torch.Tensor:
    """[N, M] bytes -> [N, 8 * M], True where a bit is 1; the lowest of a byte comes first."""
    each = bits[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)  # [N, M, 8]
    return (each & 1).flatten(1).bool()  # [N, 8 * M]


def put(
    tokens: torch.Tensor, places: list[int], draw_tokens: Callable[..., torch.Tensor], logits: torch.Tensor, draws: Any
) -> None:
    """tokens[places] = the tokens that are drawn for the draws at these places."""
    if places:
        rows = upload([draws[i][0] for i in places], logits.device)  # [num_places]
        settings = Settings.of([draws[i][1] for i in places], logits.device)
        tokens[upload(places, logits.device)] = draw_tokens(logits[rows], settings)


class Settings(NamedTuple):
    """Of several draws: each [num_draws, 1] float64."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    number: torch.Tensor

    @classmethod
    def of(cls, draws: Sequence[Draw], device: torch.device) -> Settings:
        each = [
            (d.params.temperature, min(d.params.top_k, LARGE), d.params.top_p, d.params.min_p, d.number) for d in draws
        ]
        return cls(*upload(each, device, torch.float64).T[:, :, None])  # [5, num_draws, 1]


def draw_from_all(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """[num_draws, V] -> [num_draws] tokens."""
    return pick(scaled(logits, settings).softmax(dim=-1), settings)


def draw_from_sorted(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """[num_draws, V] -> [num_draws] tokens, with top_k and top_p."""
    p = scaled(logits, settings).softmax(dim=-1)  # [num_draws, V]
    return pick(keep_likeliest(p, settings), settings)


def draw_from_likeliest(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """The same, but UNSURE where MOST tokens may not be enough."""
    if logits.shape[1] <= MOST:
        return draw_from_sorted(logits, settings)
    token_ids = logits.topk(MOST, sorted=False).indices.sort().values  # [num_draws, MOST]
    weights = scaled(logits, settings).exp()  # [num_draws, V]
    p = weights.gather(-1, token_ids) / weights.sum(dim=-1, keepdim=True)  # [num_draws, MOST]
    kept = keep_likeliest(p, settings)  # [num_draws, MOST]
    # The rest of the vocabulary is at most as likely as the least likely of these tokens. If that one is not kept, none
    # of the rest is. But with a top_k above MOST, more tokens would have to be added up to know its share for top_p.
    is_sure = (kept.where(kept > 0, 1).amin(dim=-1) > p.amin(dim=-1)) & (settings.top_k[:, 0] <= MOST)  # [num_draws]
    return token_ids.gather(-1, pick(kept, settings)[:, None])[:, 0].where(is_sure, UNSURE)  # [num_draws]


def scaled(logits: torch.Tensor, settings: Settings) -> torch.Tensor:
    """[num_draws, V] in float64; the largest of a row is 0."""
    x = logits.double()  # [num_draws, V]
    return (x - x.amax(dim=-1, keepdim=True)) / settings.temperature  # [num_draws, V]


def keep_likeliest(p: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Probabilities of M tokens, [N, M] -> [N, M], with 0 for all except the top_k, and among these the top_p.

    Of equals the first is kept."""
    likely_first, order = p.sort(dim=-1, descending=True, stable=True)  # [N, M] each
    rank = torch.arange(p.shape[1], device=p.device)  # [M]
    is_top_k = (settings.top_k <= 0) | (rank < settings.top_k)  # [N, M]
    likely_first = likely_first.where(is_top_k, 0)  # [N, M]
    whole = likely_first.sum(dim=-1, keepdim=True).where(settings.top_k > 0, 1)  # [N, 1]; 1: of all the vocabulary
    reached_before = likely_first.cumsum(dim=-1) - likely_first  # [N, M]; probability of all likelier tokens
    enough = (settings.top_p < 1) & (reached_before >= settings.top_p * whole)  # [N, M]
    return torch.zeros_like(p).scatter(-1, order, likely_first.where(~enough, 0))  # [N, M]


def pick(p: torch.Tensor, settings: Settings) -> torch.Tensor:
    """[N, M] probabilities, of any sum -> [N] places: the first whose cumulative share exceeds the number."""
    p = p.where(p >= settings.min_p * p.amax(dim=-1, keepdim=True), 0)  # [N, M]
    cumulative = p.cumsum(dim=-1)  # [N, M]
    places = torch.searchsorted(cumulative, settings.number * cumulative[:, -1:], right=True)[:, 0]  # [N]
    return places.clamp(max=p.shape[1] - 1)  # [N]; where p is NaN the place is M, which does not exist


def upload(values: Any, device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Numbers of the host, in a list or an array, as a tensor on the device, which nobody waits for."""
    host = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        host = host.pin_memory()  # whatever the copy is made from must stay where it is
    return host.to(device, non_blocking=True)
