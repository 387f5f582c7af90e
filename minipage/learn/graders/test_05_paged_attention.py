"""Lesson 5: attention, against one score at a time in float64. Slots that no token owns are NaN: reading one shows."""

import tracemalloc

import numpy as np
from hypothesis import strategies as st

from minipage.learn.graders.common import Words, expect
from minipage.learn.graders.drawn import given, programs
from minipage.learn.graders.numbers import TAME, WILD, Untouched, assert_close, attention_of, texts
from minipage.learn.judge import Wrong

QUICK = programs(60)


class Cache:
    """K and V of some sequences in blocks that lie in any order, among NaN."""

    def __init__(self, rng, keys_and_values, block_size):
        sizes = [-(-len(k) // block_size) for k, _ in keys_and_values]
        places = rng.permutation(sum(sizes) + 2)
        shape = (len(places), block_size, *keys_and_values[0][0].shape[1:])
        self.k, self.v = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)  # each `shape`
        rubbish = rng.choice([-99, 10**6, places[0]])  # no block, or somebody else's
        self.tables = np.full((len(sizes), max(sizes) + 1), rubbish)  # [num_seqs, max_blocks]
        for s, (k, v) in enumerate(keys_and_values):
            for i in range(sizes[s]):
                self.tables[s, i] = block = places[sum(sizes[:s]) + i]
                part = slice(i * block_size, (i + 1) * block_size)
                self.k[block, : len(k[part])], self.v[block, : len(v[part])] = k[part], v[part]


heads = st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1), (6, 3), (6, 2)])  # (query heads, heads of K and V)


@QUICK
@given(
    context_len=st.integers(1, 9),
    block_size=st.integers(1, 4),
    num_heads=st.integers(1, 3),
    size=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_5_1_gather(impl, context_len, block_size, num_heads, size, seed):
    impl.diary.begin()
    rng = np.random.default_rng(seed)
    _, k, v = texts(rng, 1, context_len, num_heads, num_heads, size)  # [context_len, KH, D]
    cache = Cache(rng, [(k, v)], block_size)
    table = cache.tables[0]  # [max_blocks]
    impl.diary.note(
        f"gather(cache, block_table={table.tolist()}, context_len={context_len}), in blocks of {block_size}"
    )
    impl.diary.note("cache[:, :, 0, 0] (the first number of every slot) =")
    for row in cache.k[:, :, 0, 0].round(2).tolist():
        impl.diary.note(f"    {row}")
    lent = Untouched(cache=cache.k, block_table=table)
    got = impl.gather(cache.k, table, context_len)
    lent.check()
    why = "Token i is in block block_table[i // block_size], at offset i % block_size; all of them are due, in order."
    if isinstance(got, np.ndarray) and len(got) > context_len:
        why = "More than context_len tokens came back: cut off the slots of the last block that hold no token."
    if isinstance(got, np.ndarray) and got.shape != k.shape:
        raise Wrong(why, k.shape, got.shape, "the shape of the result")
    assert_close("the result", got, k, why)


def note(impl, function, **arguments):
    shown = ", ".join(f"{name}={list(a.shape) if isinstance(a, np.ndarray) else a}" for name, a in arguments.items())
    impl.diary.note(f"{function}({shown})   (arrays by their shapes)")


def note_scores(impl, q, k, scale):
    """What each head makes of the tokens, so that one can see where they are large."""
    for h in range(len(q)):
        scores = scale * (k[:, h * k.shape[1] // len(q)] @ q[h])  # [n]
        impl.diary.note(f"    the scores of head {h} are {[float(f'{score:.6g}') for score in scores]}")


HIGHEST = (
    "NaN came out: np.exp(3000) is inf, and inf / inf is NaN; exp(-3000) is 0, and 0 / 0 is NaN, too. Take the highest "
    "score off first, of each head its own: softmax does not change."
)


@QUICK
@given(
    n=st.integers(1, 6),
    heads=heads,
    size=st.integers(1, 4),
    seed=st.integers(0, 9),
    scale=st.sampled_from([0.5, 3.0, 0.02]),
    wild=st.booleans(),
)
def test_5_2_attend(impl, n, heads, size, seed, scale, wild):
    impl.diary.begin()
    rng, (num_heads, num_kv_heads) = np.random.default_rng(seed), heads
    [q], k, v = texts(rng, 1, n, num_heads, num_kv_heads, size, scale, wild)  # [H, D], each [n, KH, D]
    note(impl, "attend", q=q, k=k, v=v, scale=scale)
    note_scores(impl, q, k, scale)
    lent = Untouched(q=q, k=k, v=v)
    with np.errstate(all="ignore"):
        got = impl.attend(q, k, v, scale)
    lent.check()
    why = "For each head: scores = q · k * scale for every token, softmax over the tokens, then the weighted mean of v."
    if num_heads > num_kv_heads:
        why += f" Query heads share K and V in runs: of {num_heads}, the first {num_heads // num_kv_heads} use head 0."
    if wild:
        why += " The scores are large: take off the highest, of each head its own, before np.exp."
    if isinstance(got, np.ndarray) and np.isnan(got).any():
        raise Wrong(HIGHEST)
    assert_close("the result", got, attention_of(q, k, v, scale), why, WILD if wild else TAME, size=np.abs(v).max())


lengths = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 3)), min_size=1, max_size=4)


@programs(100)
@given(
    lengths=lengths,
    block_size=st.integers(1, 4),
    heads=heads,
    seed=st.integers(0, 9),
    wild=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_5_3_paged_attention(impl, lengths, block_size, heads, seed, wild, dtype):
    impl.diary.begin()
    lengths = [(context, min(queries, context)) for context, queries in lengths]
    rng, (num_heads, num_kv_heads) = np.random.default_rng(seed), heads
    context_lens = np.array([context for context, _ in lengths])  # [num_seqs]
    query_start_loc = np.cumsum([0] + [queries for _, queries in lengths])  # [num_seqs + 1]
    parts = [texts(rng, queries, n, num_heads, num_kv_heads, 2, 0.7, wild) for n, queries in lengths]
    cache = Cache(rng, [(k, v) for _, k, v in parts], block_size)
    q = np.concatenate([queries for queries, _, _ in parts]).astype(dtype)  # [num_tokens, H, D]
    note(impl, "paged_attention", q=q, k_cache=cache.k, v_cache=cache.v)
    tables = {"block_tables": cache.tables, "context_lens": context_lens, "query_start_loc": query_start_loc}
    for name, array in tables.items():
        impl.diary.note(f"    {name}={array.tolist()}")
    lent = Untouched(q=q, k_cache=cache.k, v_cache=cache.v, **tables)
    with np.errstate(all="ignore"):
        got = impl.paged_attention(q, cache.k, cache.v, *tables.values(), 0.7)
    lent.check()
    many = [queries for _, queries in lengths if queries > 1]
    why = "Sequence s has the queries query_start_loc[s] to query_start_loc[s + 1], and its K and V in block_tables[s]."
    if many:
        why += (
            " Its queries are its last tokens, and each sees itself and those before it: the first of 2 queries in a "
            "context of 5 is token 3, and sees tokens 0 to 3: all that is in the cache and not only the chunk."
        )
    rows = [
        (
            attention_of(query, k[: len(k) - len(queries) + i + 1], v[: len(k) - len(queries) + i + 1], 0.7),
            np.abs(v).max(),
        )
        for queries, k, v in parts
        for i, query in enumerate(queries)
    ]
    expected = np.array([row for row, _ in rows]).reshape(q.shape)  # [num_tokens, H, D]
    size = np.array([most for _, most in rows]).reshape(-1, 1, 1)  # [num_tokens, 1, 1]
    assert_close("the result", got, expected, why, WILD if wild else TAME, size)
    expect("the dtype", str(got.dtype), str(q.dtype), "The result has q's dtype.")


class Together:
    """Two iterators over blocks, which notice if one is gone through far ahead of the other."""

    def __init__(self, k_blocks, v_blocks):
        self.blocks, self.taken = (k_blocks, v_blocks), [0, 0]

    def iterator(self, which):
        for block in self.blocks[which]:
            self.taken[which] += 1
            if abs(self.taken[0] - self.taken[1]) > 1:
                raise Wrong(
                    "One of the two iterators was gone through while the other stood still, so that many blocks are "
                    "held at once. Take a block of K and the block of V that belongs to it, use them, and go on: "
                    "`for k, v in zip(k_blocks, v_blocks)`.",
                    Words("one block of each at a time"), self.taken, "(blocks of K, blocks of V) taken so far",
                )  # fmt: skip
            yield block


@QUICK
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    num_heads=st.integers(1, 3),
    head_size=st.integers(1, 3),
    seed=st.integers(0, 9),
    scale=st.sampled_from([0.5, 3.0]),
    wild=st.booleans(),
)
def test_5_4_online_attention(impl, sizes, num_heads, head_size, seed, scale, wild):
    impl.diary.begin()
    rng = np.random.default_rng(seed)
    [q], k, v = texts(rng, 1, sum(sizes), num_heads, num_heads, head_size, scale, wild)  # [H, D], each [n, H, D]
    ends = np.cumsum(sizes)[:-1]
    impl.diary.note(f"online_attention(q {list(q.shape)}, ...) with blocks of {sizes} tokens, scale={scale}")
    note_scores(impl, q, k, scale)
    lent, blocks = Untouched(q=q, k_blocks=k, v_blocks=v), Together(np.split(k, ends), np.split(v, ends))
    with np.errstate(all="ignore"):
        got = impl.online_attention(q, blocks.iterator(0), blocks.iterator(1), scale)
    lent.check()
    if isinstance(got, np.ndarray) and np.isnan(got).any():
        raise Wrong(
            "NaN came out. Either exp(score) overflowed, because the highest score so far was not taken off (of each "
            "head its own); or the first block computed inf - inf: begin with a highest of -inf and sums of 0."
        )
    why = "Softmax over all blocks together, for each head."
    if sum(sizes) > 1:
        why = (
            "When a block brings a higher score, what was summed before (both the weights and the weighted v) is too "
            "large by exp(new highest - old highest), and has to shrink by that before anything is added."
        )
    expected = attention_of(q, k, v, scale)
    assert_close("the result", got, expected, why, WILD if wild else TAME, size=np.abs(v).max())


def test_5_4_all_scores_may_be_far_below_0(impl):
    """No number is low enough to begin with, but -inf."""
    impl.diary.begin()
    q, k, v = np.ones((2, 1)), np.full((4, 2, 1), -60_000.0), np.arange(8.0).reshape(4, 2, 1)  # [H, D], [n, H, D] twice
    q, k, v = (array.astype(np.float32) for array in (q, k, v))
    note_scores(impl, q, k, 1.0)
    with np.errstate(all="ignore"):
        got = impl.online_attention(q, iter(np.split(k, 2)), iter(np.split(v, 2)), 1.0)
    why = "All scores are -60000 here, so all tokens count the same. The highest so far begins with -inf."
    if isinstance(got, np.ndarray) and not np.isfinite(got).all():
        raise Wrong(f"NaN came out. {why}")
    assert_close("the result", got, attention_of(q, k, v, 1.0), why, size=8)


def test_5_4_nothing_grows_with_the_text(impl):
    """The point of it: 64 blocks take no more room than one does."""
    num_blocks, block_size, head_size = 64, 16, 64
    [q], k, v = texts(np.random.default_rng(0), 1, num_blocks * block_size, 1, 1, head_size, 0.1)  # [1, D], [n, 1, D]
    k_blocks, v_blocks = np.split(k, num_blocks), np.split(v, num_blocks)  # views: they take no room of their own
    impl.diary.begin()
    impl.diary.note(f"online_attention(q [1, 64], ...) with {num_blocks} blocks of {block_size} tokens")
    impl.online_attention(q, iter(k_blocks[:2]), iter(v_blocks[:2]), 0.1)  # whatever it sets up once
    tracemalloc.start()
    try:
        got = impl.online_attention(q, iter(k_blocks), iter(v_blocks), 0.1)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_close("the result", got, attention_of(q, k, v, 0.1), "Softmax over all blocks together.", size=4)
    if most > 0.6 * k.nbytes:
        raise Wrong(
            "The blocks were joined, or kept: at one moment the call had more than half the room of all K. Block by "
            "block it needs room for one, and three sums: that is why a text of any length fits into a kernel.",
            Words(f"about {k.nbytes // num_blocks // 1024} KiB, one block's room"), Words(f"{most // 1024} KiB"),
            "the most memory in use",
        )  # fmt: skip
