"""Arrays in the graders: random ones, attention one score at a time, and a comparison that explains."""

import numpy as np

from minipage.learn.graders.common import expect
from minipage.learn.judge import Wrong

TOLERANCE = 1e-4


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)  # [*shape]


def attention_of(q, k, v, scale):
    """[H, D] attention of one query, q [H, D], to k and v [n, KH, D], in float64."""
    out = np.zeros(q.shape)  # [H, D]
    for h in range(len(q)):
        kv_head = h * k.shape[1] // len(q)
        scores = [scale * float(np.dot(q[h], k[i, kv_head])) for i in range(len(k))]
        weights = [np.exp(score - max(scores)) for score in scores]
        out[h] = sum(w * v[i, kv_head].astype(float) for i, w in enumerate(weights)) / sum(weights)  # [D]
    return out


def assert_close(what, got, expected, why, tolerance=TOLERANCE):
    if not isinstance(got, np.ndarray):
        raise Wrong(f"{what} is an array.", np.ndarray, type(got))
    expect(f"the shape of {what}", got.shape, expected.shape, "The result has one place for every number that is due.")
    if np.isnan(got).any() and not np.isnan(expected).any():
        raise Wrong(
            f"NaN came out of {what}: something was read that is no token of the sequence (the unused tail of its last "
            "block, another block), or inf - inf was computed. A weight of 0 does not help: 0 * NaN is NaN."
        )
    if (np.abs(got - expected) > tolerance * (1 + np.abs(expected))).any():
        raise Wrong(why, np.round(expected, 3).tolist(), np.round(got, 3).tolist(), what)
