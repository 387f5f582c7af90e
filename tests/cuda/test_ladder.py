"""Every rung of the ladder gives what dense attention in float64 gives."""

import numpy as np
import pytest
from where import SIMULATOR, from_gpu, long, on_gpu

from minipage.ladder import RUNGS, rung
from minipage.simd.halves import from_bfloat16, to_bfloat16

KINDS = {
    "float32": (lambda x: x, lambda x: x, 1e-5),
    "float16": (lambda x: x.astype(np.float16), lambda x: x.astype(np.float32), 3e-3),
    "bfloat16": (to_bfloat16, from_bfloat16, 2e-2),
}
SIZES = (
    [(2, 1, 16, 8), (1, 4, 64, 16), (2, 3, 40, 5)]
    if SIMULATOR
    else [(12, 1, 64, 16), (8, 4, 128, 16), (8, 8, 128, 32), (2, 3, 40, 5)]
)
# In the simulator each kind comes in one size, and each size with one kind; all others are slow there.
ALL = [(kind, sizes) for kind in KINDS for sizes in SIZES]
CASES = [case if ALL.index(case) in (1, 3, 8) else long(*case) for case in ALL]


@pytest.mark.parametrize("name", RUNGS)
@pytest.mark.parametrize("kind, sizes", CASES, ids=str)
def test_every_rung_equals_dense_attention(name, kind, sizes):
    num_kv_heads, group, head_size, block_size = sizes
    encode, decode, tolerance = KINDS[kind]
    context_lens = np.array([1, 37, block_size * 2] if SIMULATOR else [1, 700, 4096, block_size * 64], np.int32)
    rng = np.random.default_rng(0)
    blocks_of = -(-context_lens // block_size)
    tables = np.full((len(context_lens), blocks_of.max()), 10**6, np.int32)
    free = iter(rng.permutation(blocks_of.sum() + 2))
    shape = (blocks_of.sum() + 2, block_size, num_kv_heads, head_size)
    k_cache, v_cache = np.full((2, *shape), np.nan, np.float32)  # what no token owns is poison
    q = decode(encode(rng.standard_normal((len(context_lens), num_kv_heads * group, head_size)).astype(np.float32)))
    expected = np.zeros(q.shape)
    for s, context in enumerate(context_lens):
        tables[s, : blocks_of[s]] = [next(free) for _ in range(blocks_of[s])]
        k, v = rng.standard_normal((2, context, num_kv_heads, head_size)).astype(np.float32)
        k, v = decode(encode(k)), decode(encode(v))
        for t in range(context):
            where = tables[s, t // block_size], t % block_size
            k_cache[where], v_cache[where] = k[t], v[t]
        k, v = (a.astype(float).repeat(group, axis=1) for a in (k, v))  # each [context, num_heads, head_size]
        scores = np.einsum("hd,khd->hk", q[s].astype(float), k) * head_size**-0.5
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        expected[s] = np.einsum("hk,khd->hd", weights / weights.sum(axis=1, keepdims=True), v)
    given = [on_gpu(a) for a in (encode(q), encode(k_cache), encode(v_cache), tables, context_lens)]
    out = on_gpu(np.full_like(encode(q), encode(np.array([np.nan], np.float32))[0]))
    rung(name)(*given, head_size**-0.5, out)
    got = decode(from_gpu(out))
    assert not np.isnan(got).any()
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
