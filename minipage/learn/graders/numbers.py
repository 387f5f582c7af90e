"""Arrays in the graders: tame and wild ones, attention one score at a time, and a comparison that explains."""

import numpy as np

from minipage.learn.graders.common import Words, name_of
from minipage.learn.judge import Wrong

LEVELS = (0, 3000, -3000, 20000, -20000)  # scores; np.exp overflows at 710 in float64, at 89 in float32
TAME, WILD = 1e-5, 2e-2  # of the largest v: what rounding may do. A float32 of 20000 is off by 0.001, and so is its exp


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)  # [*shape]


def texts(rng, num_queries, num_tokens, num_heads, num_kv_heads, head_size, scale=None, wild=False):
    """q [num_queries, H, D], k and v [num_tokens, KH, D]. With `wild`, each query and head has scores at a level of its
    own, far above what np.exp bears or far below, and some tokens have the opposite ones; v is tiny, or huge."""
    q = normal(rng, num_queries, num_heads, head_size)  # [n, H, D]
    k, v = (normal(rng, num_tokens, num_kv_heads, head_size) for _ in range(2))  # each [T, KH, D]
    if wild:
        levels = rng.choice(LEVELS, q.shape[:2])  # [n, H]
        opposite = rng.random(k.shape[:2]) < rng.choice([0, 0.4])  # [T, KH]
        q[:, :, 0] = levels / (4 * (scale or head_size**-0.5))
        k[:, :, 0] = np.where(opposite, -4, 4)
        v *= np.float32(10.0 ** rng.choice([-20, -6, 0, 6]))  # [T, KH, D]
    return q, k, v


def attention_of(q, k, v, scale):
    """[H, D] attention of one query, q [H, D], to k and v [n, KH, D], in float64."""
    out = np.zeros(q.shape)  # [H, D]
    q, k, v = q.astype(float), k.astype(float), v.astype(float)
    for h in range(len(q)):
        kv_head = h * k.shape[1] // len(q)
        scores = scale * (k[:, kv_head] @ q[h])  # [n]
        weights = np.exp(scores - scores.max())  # [n]
        out[h] = weights @ v[:, kv_head] / weights.sum()  # [D]
    return out


def assert_close(what, got, expected, why, tolerance=TAME, size=None):
    """Whether no number is off by more than `tolerance` times `size` (its own size, if none is given)."""
    if got is None:
        raise Wrong(f"{what} is nothing (None): is there a `return`?")
    if not isinstance(got, np.ndarray):
        raise Wrong(f"{what} has to be an array of NumPy's, not {name_of(got)}.", Words("numpy.ndarray"), type(got))
    got = np.asarray(got)  # not a class of its own any more
    if got.shape != expected.shape:
        why = f"{what} has one place for every number that is due."
        raise Wrong(f"{why} It has to be {list(expected.shape)}.", expected.shape, got.shape, f"the shape of {what}")
    if got.dtype.kind not in "fiu":
        raise Wrong(
            f"{what} has to hold numbers.", Words("float32 or float64"), Words(got.dtype), f"the dtype of {what}"
        )
    if np.isnan(got).any() and not np.isnan(expected).any():
        raise Wrong(
            f"NaN came out of {what}: something was read that is no token of the sequence (the unused tail of its last "
            "block, another block), or inf - inf was computed. A weight of 0 does not help: 0 * NaN is NaN."
        )
    with np.errstate(all="ignore"):
        off = np.abs(got.astype(float) - expected)  # [*expected.shape]
        allowed = tolerance * (np.abs(expected) if size is None else size)
    bad = ~(off <= allowed)
    if bad.any():
        place = np.unravel_index(np.argmax(np.where(bad, off, -1)), off.shape)
        index = ", ".join(map(str, place))
        raise Wrong(why, float(expected[place]), float(got[place]), f"{what}[{index}]" if place else what)


class Untouched:
    """Notices if somebody writes into arrays that were only lent."""

    def __init__(self, **arrays):
        self.arrays = {name: (array, array.copy()) for name, array in arrays.items()}

    def check(self):
        for name, (array, before) in self.arrays.items():
            if not np.array_equal(array, before, equal_nan=array.dtype.kind == "f"):
                raise Wrong(
                    f"{name} was changed: it was only lent, and belongs to somebody else. `{name} *= 2`, `+=` and "
                    f"`out={name}` write into it; `{name} = {name} * 2` makes an array of yours.", before, array, name
                )  # fmt: skip
