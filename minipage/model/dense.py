"""Causal attention over one whole sequence, with no cache: what paging must never change."""

from __future__ import annotations

import math

from array_api_compat import array_namespace, device

from minipage.model.architecture import Array


def dense_attend(layer: int, q: Array, k: Array, v: Array, window: int | None = None) -> Array:
    """The tokens 0 .. T-1 of one sequence: q [T, H, D], k and v [T, KH, D], of which each serves H / KH heads of q.
    A token sees the last `window` of those up to and including itself; None: all.

    Returns [T, H, D].
    """
    xp = array_namespace(q)
    T, H, D = q.shape
    q = xp.permute_dims(xp.reshape(q, (T, k.shape[1], H // k.shape[1], D)), (1, 2, 0, 3))  # [KH, H / KH, T, D]
    k, v = (xp.permute_dims(a, (1, 0, 2))[:, None] for a in (k, v))  # each [KH, 1, T, D]
    scores = q @ xp.permute_dims(k, (0, 1, 3, 2)) / math.sqrt(D)  # [KH, H / KH, T, T]
    t = xp.arange(T, device=device(q))  # [T]
    seen = (t[:, None] >= t[None, :]) & (t[:, None] - t[None, :] < (window or T))  # [T, T]; no token sees a later one
    scores = xp.where(seen, scores, -math.inf)  # [KH, H / KH, T, T]
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))  # [KH, H / KH, T, T]
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)  # [KH, H / KH, T, T]
    return xp.reshape(xp.permute_dims(weights @ v, (2, 0, 1, 3)), (T, H, D))  # [T, H, D]
