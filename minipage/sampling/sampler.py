"""From logits to the next token.

    logits ─▶ / temperature ─▶ softmax ─▶ keep the top_k ─▶ keep the top_p ─▶ drop below min_p ─▶ draw one

Before all that, a request may have its logits adjusted: processors.py.

The number behind a draw is made from the seed, the sample's index and the token's position, and from nothing else. So a
seeded request gives the same text whatever else is in the batch, and however often it is preempted or starts again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minipage.sampling.params import SamplingParams
from minipage.sampling.processors import Adjustment

STRETCH = 256  # tokens, in `first_beyond`
NO_TOKEN = -1  # drawn where there is nothing to draw from: the logits are no numbers, or no token is allowed


class Draw(NamedTuple):
    """How to choose one token, from one row of logits."""

    params: SamplingParams
    number: float  # from [0, 1); see random_number
    adjustment: Adjustment | None = None  # what is done to the logits first


class Logprob(NamedTuple):
    """One token's place in the model's distribution, before temperature and other wishes except structured_outputs."""

    logprob: float  # natural logarithm
    rank: int  # 1: the most likely token
    decoded_token: str


def probabilities(logits: npt.NDArray[Any], params: SamplingParams) -> npt.NDArray[np.float64]:
    """The distribution that `params` makes of one row of logits [V]; sums to 1, filtered tokens have 0."""
    # The maximum is taken off before dividing. What then overflows, by a tiny temperature, is -inf and gets 0.
    # All of it happens in one array, because new memory takes longer than the arithmetic.
    p: npt.NDArray[np.float64] = np.subtract(logits, logits.max(), dtype=np.float64)  # [V]
    with np.errstate(over="ignore"):
        np.exp(np.divide(p, params.temperature, out=p), out=p)
    p /= p.sum()
    if 0 < params.top_k < len(p):
        drop_all_but(most_likely(p, params.top_k), p)
    if params.top_p < 1:
        drop_all_but(find_nucleus(p, params.top_p), p)
    p[p < params.min_p * p.max()] = 0
    p /= p.sum()
    return p


def most_likely(p: npt.NDArray[Any], count: int) -> npt.NDArray[np.intp]:
    """The token ids of the `count` largest of p [V], largest first; of equals the smaller id."""
    if count == 0:
        return np.zeros(0, np.intp)  # [0]
    token_ids: npt.NDArray[np.intp] = np.arange(len(p))  # [V]
    if count < len(p):  # sorting all of them would take several times longer
        token_ids = np.flatnonzero(p >= np.partition(p, -count)[-count])  # [count, or more if some are equal]
    return token_ids[np.argsort(-p[token_ids], kind="stable")][:count]  # [count]


def find_nucleus(p: npt.NDArray[Any], top_p: float) -> npt.NDArray[np.intp]:
    """The token ids of the fewest most likely tokens that together have the share `top_p` of p [V]."""
    wanted = top_p * p.sum()
    token_ids = np.flatnonzero(p)  # [possible]
    count = 256
    while True:
        best: npt.NDArray[np.intp] = token_ids[most_likely(p[token_ids], count)]  # [count, or all that are possible]
        reached_before = np.cumsum(p[best]) - p[best]  # [like best]; probability of all likelier tokens
        if len(best) == len(token_ids) or reached_before[-1] >= wanted:
            return best[: np.count_nonzero(reached_before < wanted)]  # [size of the nucleus]
        count *= 8


def drop_all_but(token_ids: npt.NDArray[np.intp], p: npt.NDArray[Any]) -> None:
    """p [V]: all others become 0."""
    kept = p[token_ids]  # [kept]
    p[:] = 0
    p[token_ids] = kept


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[..., V] logits -> log probabilities of the same shape."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)  # [..., V]
    logprobs: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))  # [..., V]
    return logprobs


def random_number(seed: int, index: int, position: int) -> float:
    """A number from [0, 1) for one token of one sample: always the same for the same three."""
    digest = hashlib.blake2b(b"%d %d %d" % (seed, index, position), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def sample(logits: npt.NDArray[Any], params: SamplingParams, draw: float, adjustment: Adjustment | None = None) -> int:
    """Choose the next token from one row of logits [V], which stays as it is, by `draw`, a number from [0, 1).

    The answer is NO_TOKEN if the largest logit, after the adjustment, is not a finite number.
    """
    if adjustment is not None:
        logits = adjustment.apply(logits)  # [V]
    likeliest = int(logits.argmax())  # or the first NaN
    if not math.isfinite(logits[likeliest]):
        return NO_TOKEN
    if params.temperature == 0:
        return likeliest
    return first_beyond(draw, probabilities(logits, params))


def first_beyond(number: float, p: npt.NDArray[np.float64]) -> int:
    """The first token whose cumulative probability exceeds a number from [0, 1): never one with probability 0; p: [V].

    A running sum takes one number after the other, and is slow. So first the stretch is found that has the token.
    """
    ends = np.cumsum(np.add.reduceat(p, np.arange(0, len(p), STRETCH)))  # [stretches]; what there is up to their ends
    start = int((ends > number * ends[-1]).argmax()) * STRETCH
    within = np.cumsum(p[start : start + STRETCH])  # [STRETCH, or what is left]
    wanted = number * ends[-1] - ends[start // STRETCH] + within[-1]  # of it; rounded, perhaps below 0, or all
    return start + int((within > min(max(wanted, 0.0), np.nextafter(within[-1], 0.0))).argmax())


def sample_batch(logits: npt.NDArray[Any], draws: Sequence[tuple[int, Draw]]) -> list[int]:
    """A token for each draw, from the row of logits [num_rows, V] that is named before it."""
    return [sample(logits[row], *draw) for row, draw in draws]


def top_logprobs(logits: npt.NDArray[Any], token_id: int, count: int) -> dict[int, tuple[float, int]]:
    """{token id: (log probability, rank)} of `token_id` and of the `count` most likely tokens; logits: [V]."""
    logprobs = log_softmax(logits)  # [V]
    likely_first = most_likely(logprobs, count)  # [count]
    rank = 1 + int((logprobs > logprobs[token_id]).sum())
    return {token_id: (float(logprobs[token_id]), rank)} | {
        int(token): (float(logprobs[token]), place) for place, token in enumerate(likely_first, 1)
    }
