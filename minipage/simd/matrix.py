"""The matrix product: tiles of sums that stay in registers while their numbers are loaded once.

Attention over many queries (`attention/prefill.py`) and every linear layer (`model/layers/compiled.py`) are made of it.
"""

from __future__ import annotations

from minipage.simd.options import compiled
from minipage.simd.vectors import LANES, fma, load, prefetch, store

ROW_PANELS = 4  # that `add_row_product` reads at once


@compiled
def add_product(a, b, start, stop, c, coming=None):
    """c += a @ b, from row `start` to `stop`: a [rows, n], b [n, m], c [rows, m]; m is a multiple of 2 * LANES.

    A number that is loaded is used often: a pair of vectors of b for two tiles of c, of four rows each, whose sums are
    held in registers. Where fewer rows are left, the last one is computed several times. Numbers of a and b may be
    pairs of bfloat16, see `fma`.

    `coming`, the b of the next product, of 2 * LANES columns, is fetched from memory meanwhile, spread over all rows of
    a.
    """
    last, pace = stop - 1, 0  # 2 ** pace numbers of a row of a for each row of `coming`
    while (16 << pace) <= stop - start:
        pace += 1
    for r in range(start, stop, 8):
        s, fetched = min(r + 4, last), (r - start) // 8 * (len(b) >> pace)
        for d in range(0, b.shape[1], 2 * LANES):
            e = d + LANES
            upper, lower = load_tile(c, r, last, d), load_tile(c, s, last, d)
            if last < r + 4:  # all rows are in the upper tile
                for i in range(len(b)):
                    fetch(coming, fetched + (i >> pace))
                    upper = add_to_tile(upper, a, r, last, i, load(b, (i, d)), load(b, (i, e)))
            else:
                for i in range(len(b)):
                    fetch(coming, fetched + (i >> pace))
                    bd, be = load(b, (i, d)), load(b, (i, e))
                    upper = add_to_tile(upper, a, r, last, i, bd, be)
                    lower = add_to_tile(lower, a, s, last, i, bd, be)
            store_tile(c, s, last, d, lower)
            store_tile(c, r, last, d, upper)  # after the other: only this one has all rows, if there are up to four


@compiled
def fetch(b, row):
    """Of a b of 2 * LANES columns, a row, or the last one if there is none."""
    if b is not None:
        prefetch(b, (min(row, len(b) - 1), 0)), prefetch(b, (min(row, len(b) - 1), LANES))


@compiled
def add_row_product(a, panels, c):
    """c[p] += a @ panels[p], for one row, a [n], and up to ROW_PANELS panels [n, 2 * LANES] at once. Where there are
    fewer, the last one is computed several times.

    Each sum of a row is made one number after the other, so the processor waits less if there are many at a time.
    """
    last = len(panels) - 1
    q, r, s = min(1, last), min(2, last), min(3, last)
    pd, pe, qd, qe, rd, re, sd, se = load_tile(c, 0, last, 0)
    for i in range(len(a)):
        pd, pe = fma(pd, a[i], load(panels, (0, i, 0))), fma(pe, a[i], load(panels, (0, i, LANES)))
        qd, qe = fma(qd, a[i], load(panels, (q, i, 0))), fma(qe, a[i], load(panels, (q, i, LANES)))
        rd, re = fma(rd, a[i], load(panels, (r, i, 0))), fma(re, a[i], load(panels, (r, i, LANES)))
        sd, se = fma(sd, a[i], load(panels, (s, i, 0))), fma(se, a[i], load(panels, (s, i, LANES)))
    store_tile(c, 0, last, 0, (pd, pe, qd, qe, rd, re, sd, se))


@compiled
def load_tile(c, r, last, d):
    """Of rows r to r + 3, but none after `last`, two vectors from column d on: (row r: d, e, row r + 1: d, e, ...)."""
    e, s, t, u = d + LANES, min(r + 1, last), min(r + 2, last), min(r + 3, last)
    return (
        load(c, (r, d)), load(c, (r, e)), load(c, (s, d)), load(c, (s, e)),
        load(c, (t, d)), load(c, (t, e)), load(c, (u, d)), load(c, (u, e)),
    )  # fmt: skip


@compiled
def add_to_tile(tile, a, r, last, i, bd, be):
    """The tile plus the products of column i of a with two vectors of row i of b."""
    s, t, u = min(r + 1, last), min(r + 2, last), min(r + 3, last)
    rd, re, sd, se, td, te, ud, ue = tile
    return (
        fma(rd, a[r, i], bd), fma(re, a[r, i], be), fma(sd, a[s, i], bd), fma(se, a[s, i], be),
        fma(td, a[t, i], bd), fma(te, a[t, i], be), fma(ud, a[u, i], bd), fma(ue, a[u, i], be),
    )  # fmt: skip


@compiled
def store_tile(c, r, last, d, tile):
    e, s, t, u = d + LANES, min(r + 1, last), min(r + 2, last), min(r + 3, last)
    rd, re, sd, se, td, te, ud, ue = tile
    store(c, (r, d), rd), store(c, (s, d), sd), store(c, (t, d), td), store(c, (u, d), ud)
    store(c, (r, e), re), store(c, (s, e), se), store(c, (t, e), te), store(c, (u, e), ue)
