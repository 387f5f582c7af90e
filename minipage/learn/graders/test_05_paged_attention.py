"""Lesson 5: attention, against one score at a time in float64. Slots that no token owns are NaN: reading one shows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minipage.learn.graders.common import expect, programs
from minipage.learn.graders.numbers import assert_close, attention_of, normal
from minipage.learn.judge import Wrong

QUICK = programs(40)


class Cache:
    """K and V of some sequences in blocks that lie in any order, among NaN."""

    def __init__(self, rng, context_lens, block_size, num_kv_heads, head_size):
        sizes = [-(-n // block_size) for n in context_lens]
        places = rng.permutation(sum(sizes) + 2)
        shape = (len(places), block_size, num_kv_heads, head_size)
        self.k, self.v = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)  # each `shape`
        self.tables = np.full((len(sizes), max(sizes) + 1), -99)  # [num_seqs, max_blocks]; -99 is no block
        self.texts = [
            (normal(rng, n, num_kv_heads, head_size), normal(rng, n, num_kv_heads, head_size)) for n in context_lens
        ]
        for s, (k, v) in enumerate(self.texts):
            for i in range(sizes[s]):
                self.tables[s, i] = block = places[sum(sizes[:s]) + i]
                part = slice(i * block_size, (i + 1) * block_size)
                self.k[block, : len(k[part])], self.v[block, : len(v[part])] = k[part], v[part]


heads = st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)])  # (query heads, heads of K and V)


@QUICK
@given(context_len=st.integers(1, 9), block_size=st.integers(1, 4), seed=st.integers(0, 3))
def test_5_1_gather(impl, context_len, block_size, seed):
    impl.diary.begin()
    cache = Cache(np.random.default_rng(seed), [context_len], block_size, 1, 2)
    table, (k, _) = cache.tables[0], cache.texts[0]
    impl.diary.note(
        f"gather(cache, block_table={table.tolist()}, context_len={context_len}), in blocks of {block_size}"
    )
    impl.diary.note("cache[:, :, 0, 0] (the first number of every slot) =")
    for row in cache.k[:, :, 0, 0].round(2).tolist():
        impl.diary.note(f"    {row}")
    got = impl.gather(cache.k, table, context_len)
    why = "Token i is in block block_table[i // block_size], at offset i % block_size; all of them are due, in order."
    if isinstance(got, np.ndarray) and len(got) > context_len:
        why = "More than context_len tokens came back: cut off the slots of the last block that hold no token."
    if isinstance(got, np.ndarray) and got.shape != k.shape:
        raise Wrong(why, k.shape, got.shape, "the shape of the result")
    assert_close("the result", got, k, why)


def note(impl, function, **arguments):
    shown = ", ".join(f"{name}={list(a.shape) if isinstance(a, np.ndarray) else a}" for name, a in arguments.items())
    impl.diary.note(f"{function}({shown})   (arrays by their shapes)")


@QUICK
@given(n=st.integers(1, 6), heads=heads, seed=st.integers(0, 3), large=st.booleans())
def test_5_2_attend(impl, n, heads, seed, large):
    impl.diary.begin()
    rng, (num_heads, num_kv_heads) = np.random.default_rng(seed), heads
    q, k, v = normal(rng, num_heads, 2), normal(rng, n, num_kv_heads, 2), normal(rng, n, num_kv_heads, 2)
    scale = 300.0 if large else 0.5
    note(impl, "attend", q=q, k=k, v=v, scale=scale)
    with np.errstate(all="ignore"):
        got = impl.attend(q, k, v, scale)
    why = "For each head: scores = q · k * scale for every token, softmax over the tokens, then the weighted mean of v."
    if num_heads > num_kv_heads:
        why += f" Query heads share K and V in runs: of {num_heads}, the first {num_heads // num_kv_heads} use head 0."
    if isinstance(got, np.ndarray) and np.isnan(got).any():
        raise Wrong(
            "NaN came out: np.exp of a large score is inf, and inf / inf is NaN. Take the highest score off first."
        )
    assert_close("the result", got, attention_of(q, k, v, scale), why)


lengths = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 3)), min_size=1, max_size=3)


@QUICK
@given(lengths=lengths, block_size=st.integers(1, 4), heads=heads, seed=st.integers(0, 3))
def test_5_3_paged_attention(impl, lengths, block_size, heads, seed):
    impl.diary.begin()
    lengths = [(context, min(queries, context)) for context, queries in lengths]
    rng, (num_heads, num_kv_heads) = np.random.default_rng(seed), heads
    context_lens = np.array([context for context, _ in lengths])  # [num_seqs]
    query_start_loc = np.cumsum([0] + [queries for _, queries in lengths])  # [num_seqs + 1]
    cache = Cache(rng, context_lens, block_size, num_kv_heads, 2)
    q = normal(rng, int(query_start_loc[-1]), num_heads, 2)  # [num_tokens, H, D]
    note(impl, "paged_attention", q=q, k_cache=cache.k, v_cache=cache.v)
    for name, array in (
        ("block_tables", cache.tables),
        ("context_lens", context_lens),
        ("query_start_loc", query_start_loc),
    ):
        impl.diary.note(f"    {name}={array.tolist()}")
    expected = np.zeros(q.shape, np.float32)  # [num_tokens, H, D]
    for s, (context, queries) in enumerate(lengths):
        k, v = cache.texts[s]
        for i in range(queries):
            visible = context - queries + i + 1
            expected[query_start_loc[s] + i] = attention_of(q[query_start_loc[s] + i], k[:visible], v[:visible], 0.7)
    got = impl.paged_attention(q, cache.k, cache.v, cache.tables, context_lens, query_start_loc, 0.7)
    many = [queries for _, queries in lengths if queries > 1]
    why = "Sequence s has the queries query_start_loc[s] to query_start_loc[s + 1], and its K and V in block_tables[s]."
    if many and max(many) == max(queries for _, queries in lengths):
        why += (
            " Its queries are its last tokens, and each sees itself and those before it: the first of 2 queries in a "
            "context of 5 is token 3, and sees tokens 0 to 3: all that is in the cache and not only the chunk."
        )
    assert_close("the result", got, expected, why)
    expect("the dtype", got.dtype, q.dtype, "The result has q's dtype.")


@QUICK
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    num_heads=st.integers(1, 2),
    seed=st.integers(0, 9),
    scale=st.sampled_from([0.5, 300.0]),
)
def test_5_4_online_attention(impl, sizes, num_heads, seed, scale):
    impl.diary.begin()
    rng = np.random.default_rng(seed)
    q, k, v = normal(rng, num_heads, 2), normal(rng, sum(sizes), num_heads, 2), normal(rng, sum(sizes), num_heads, 2)
    ends = np.cumsum(sizes)[:-1]
    scores = (np.einsum("hd,nhd->nh", q, k) * scale)[:, 0].round(1).tolist()
    impl.diary.note(f"blocks of {sizes} tokens; the scores of head 0 are {scores}")
    with np.errstate(all="ignore"):
        got = impl.online_attention(q, iter(np.split(k, ends)), iter(np.split(v, ends)), scale)
    if isinstance(got, np.ndarray) and np.isnan(got).any():
        raise Wrong(
            "NaN came out. Either exp(score) overflowed, because the highest score so far was not taken off; or the "
            "first block computed inf - inf: begin with a highest of -inf and sums of 0."
        )
    why = "Softmax over all blocks together, for each head."
    if len(sizes) > 1:
        why = (
            "When a block brings a higher score, what was summed before (both the weights and the weighted v) is too "
            "large by exp(new highest - old highest), and has to shrink by that before anything is added."
        )
    assert_close("the result", got, attention_of(q, k, v, scale), why)
