"""Every `paged_attention` gives what dense attention in float64 gives, wherever the blocks lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from where import SIMULATOR, only_cpu, versions

from minipage.errors import KernelArgumentError, MinipageError


def dense_attention(q, k, v, scale, window=None):
    """The oracle, one score at a time, in float64: q [n, H, D] are the last n tokens of k, v [context, KH, D]."""
    out = np.zeros(q.shape)  # [n, H, D]
    for i, h in np.ndindex(q.shape[:2]):
        visible = len(k) - len(q) + i + 1
        first = max(0, visible - window) if window else 0
        kv_head = h * k.shape[1] // q.shape[1]
        scores = [scale * float(np.dot(q[i, h], k[j, kv_head])) for j in range(first, visible)]
        weights = np.exp(np.array(scores) - max(scores))  # [visible]
        out[i, h] = weights @ v[first:visible, kv_head] / weights.sum()  # [D]
    return out


class Case:
    """A ragged batch with its K and V laid into blocks, and what attention should make of it."""

    def __init__(self, lengths, block_size, num_kv_heads, group, head_size, seed, dtype=np.float32, share=False,
                 window=None):  # fmt: skip
        """lengths: for each sequence (context_len, query_len); share: sequences of the same text share its blocks.

        Blocks behind the window are nowhere: if their place in the table is looked at, it points out of the cache.
        """
        self.options = {} if window is None else {"window": window}
        rng = np.random.default_rng(seed)
        num_heads = num_kv_heads * group
        self.scale = head_size**-0.5
        blocks_of = [-(-context // block_size) for context, _ in lengths]
        num_blocks = sum(blocks_of) + 3
        free = list(rng.permutation(num_blocks))  # blocks of a sequence lie in any order, among those of others
        shape = (num_blocks, block_size, num_kv_heads, head_size)
        self.k_cache = np.full(shape, np.nan, dtype)  # [num_blocks, block_size, KH, D]; what no token owns is poison
        self.v_cache = np.full(shape, np.nan, dtype)  # [num_blocks, block_size, KH, D]
        self.block_tables = np.full((len(lengths), max(blocks_of, default=0) + 1), -7)  # [num_seqs, max_blocks + 1]
        text = rng.standard_normal((2, max(c for c, _ in lengths), num_kv_heads, head_size))  # shared beginning
        queries, expected, written = [], [], {}
        for s, (context, n) in enumerate(lengths):
            k, v = text[:, :context] if share else rng.standard_normal((2, context, num_kv_heads, head_size))
            k, v = k.astype(dtype), v.astype(dtype)  # each [context, KH, D]
            first = 0 if share or not window else max(0, context - n + 1 - window)  # before it everything is poison
            for logical in range(first // block_size, blocks_of[s]):
                tokens = slice(max(first, logical * block_size), min(context, (logical + 1) * block_size))
                key = (logical, tokens.stop) if share else (s, logical)
                block = written[key] if key in written else written.setdefault(key, free.pop())
                self.block_tables[s, logical] = block
                offsets = slice(tokens.start - logical * block_size, tokens.stop - logical * block_size)
                self.k_cache[block, offsets] = k[tokens]
                self.v_cache[block, offsets] = v[tokens]
            queries.append(rng.standard_normal((n, num_heads, head_size)).astype(dtype))
            expected.append(
                dense_attention(queries[-1].astype(float), k.astype(float), v.astype(float), self.scale, window)
            )
        self.q = np.concatenate(queries)  # [num_tokens, H, D]
        self.expected = np.concatenate(expected)  # [num_tokens, H, D]
        self.context_lens = np.array([context for context, _ in lengths])  # [num_seqs]
        self.query_start_loc = np.cumsum([0] + [n for _, n in lengths])  # [num_seqs + 1]

    def arguments(self, **changed):
        names = ("q", "k_cache", "v_cache", "block_tables", "context_lens", "query_start_loc", "scale")
        return {name: getattr(self, name) for name in names} | self.options | changed


def assert_close(got, expected, tolerance):
    assert got.shape == expected.shape
    assert not np.isnan(got).any(), "NaN came out: a slot was read that no token of the sequence owns"
    error = np.abs(got - expected).max(initial=0) / max(1e-30, np.abs(expected).max(initial=0))
    assert error <= tolerance, f"relative error {error:.1e}, allowed {tolerance:.0e}"


lengths = st.lists(
    st.integers(1, 40 if SIMULATOR else 70).flatmap(
        lambda context: st.tuples(st.just(context), st.one_of(st.just(1), st.integers(0, context))),
    ),
    min_size=1, max_size=2 if SIMULATOR else 5,
)  # fmt: skip


@versions
@given(
    lengths=lengths,
    block_size=st.integers(1, 20),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_size=st.sampled_from([1, 4, 8, 12, 64]),
    seed=st.integers(0, 2**32 - 1),
    share=st.booleans(),
    window=st.one_of(st.none(), st.integers(1, 80)),
)
def test_equals_dense_attention(
    paged_attention, lengths, block_size, num_kv_heads, group, head_size, seed, share, window
):
    case = Case(lengths, block_size, num_kv_heads, group, head_size, seed, share=share, window=window)
    assert_close(paged_attention(**case.arguments()), case.expected, 1e-5)


@only_cpu
@versions
def test_float64_in_gives_float64_out(paged_attention):
    case = Case([(33, 1), (9, 9)], 4, 2, 2, 8, seed=1, dtype=np.float64)
    out = paged_attention(**case.arguments())
    assert out.dtype == np.float64
    assert_close(out, case.expected, 1e-13)


@versions
@pytest.mark.parametrize("context", [1, 15, 16, 17, 32, 600 if SIMULATOR else 2000])
def test_contexts_around_the_edges_of_blocks_and_long_ones(paged_attention, context):
    case = Case([(context, 1), (context, min(context, 2))], 16, 2, 2, 16, seed=context)
    assert_close(paged_attention(**case.arguments()), case.expected, 1e-5)


@versions
@pytest.mark.parametrize("window", [1, 15, 16, 100, 2**40])
@pytest.mark.parametrize("head_size", [8] if SIMULATOR else [8, 64])
def test_a_window_hides_what_lies_behind_and_never_looks_for_its_blocks(paged_attention, window, head_size):
    long, queries = (130, 20) if SIMULATOR else (1000, 130)
    case = Case([(long, 1), (25, 25), (long, queries), (3, 1)], 16, 1, 2, head_size, seed=window % 1000, window=window)
    assert_close(paged_attention(**case.arguments()), case.expected, 1e-5)


@versions
def test_large_scores_do_not_overflow(paged_attention):
    case = Case([(40, 3)], 8, 2, 1, 8, seed=5)
    q = case.q * 1000  # scores of some thousands: exp of them is infinite in float32
    k, v = (a[case.block_tables[0, :5]].reshape(40, 2, 8).astype(float) for a in (case.k_cache, case.v_cache))
    expected = dense_attention(q.astype(float), k, v, case.scale)
    assert_close(paged_attention(**case.arguments(q=q)), expected, 1e-3)  # scores themselves have a few digits less


@versions
def test_a_chunked_prompt_gives_the_same_as_a_whole_one(paged_attention):
    case = Case([(50, 50)], 16, 2, 2, 8, seed=2)
    whole = paged_attention(**case.arguments())
    for start, stop in ((0, 1), (1, 4), (4, 21), (21, 50)):
        chunk = case.arguments(
            q=case.q[start:stop], context_lens=np.array([stop]), query_start_loc=np.array([0, stop - start])
        )
        assert_close(paged_attention(**chunk), whole[start:stop], 1e-6)


@versions
def test_what_else_is_in_the_batch_changes_not_a_bit(paged_attention):
    case = Case([(50, 1), (7, 7), (64, 20)], 16, 2, 2, 8, seed=3)
    together = paged_attention(**case.arguments())
    for s in range(3):
        rows = slice(case.query_start_loc[s], case.query_start_loc[s + 1])
        alone = case.arguments(
            q=case.q[rows],
            block_tables=case.block_tables[s : s + 1],
            context_lens=case.context_lens[s : s + 1],
            query_start_loc=np.array([0, rows.stop - rows.start]),
        )
        np.testing.assert_array_equal(paged_attention(**alone), together[rows])


@versions
def test_an_empty_batch_gives_an_empty_answer(paged_attention):
    case = Case([(5, 1)], 4, 1, 1, 4, seed=0)
    nothing = case.arguments(
        q=case.q[:0],
        block_tables=case.block_tables[:0],
        context_lens=case.context_lens[:0],
        query_start_loc=np.array([0]),
    )
    assert paged_attention(**nothing).shape == (0, 1, 4)


@versions
def test_nothing_that_is_handed_in_is_changed(paged_attention):
    case = Case([(20, 4), (3, 1)], 4, 2, 2, 8, seed=4)
    before = {name: np.copy(value) for name, value in case.arguments().items()}
    paged_attention(**case.arguments())
    for name, value in case.arguments().items():
        np.testing.assert_array_equal(value, before[name])


BAD = {
    "q without heads": (lambda c: dict(q=c.q[:, 0]), "num_tokens, num_heads, head_size"),
    "K and V of different shapes": (lambda c: dict(v_cache=c.v_cache[1:]), "k_cache has shape"),
    "another head size": (lambda c: dict(q=c.q[..., :3].copy()), "head_size"),
    "heads that cannot be shared": (lambda c: dict(q=c.q[:, :3].copy()), "cannot share"),
    "mixed dtypes": (lambda c: dict(q=c.q.astype(np.float64)), "float32"),
    "a dtype no kernel knows": (
        lambda c: {name: getattr(c, name).astype(complex) for name in ("q", "k_cache", "v_cache")},
        "complex128",
    ),
    "a cache that is not contiguous": (lambda c: dict(k_cache=c.k_cache[::-1]), "contiguous"),
    "block tables of floats": (lambda c: dict(block_tables=c.block_tables.astype(float)), "integers"),
    "one context length too few": (lambda c: dict(context_lens=c.context_lens[:-1]), "block_tables must be"),
    "queries that are not all accounted for": (lambda c: dict(query_start_loc=np.array([0, 4, 4])), "query_start_loc"),
    "query_start_loc going backwards": (lambda c: dict(query_start_loc=np.array([0, 7, 5])), "query_start_loc"),
    "more queries than context": (lambda c: dict(context_lens=np.array([3, 3])), "context_lens"),
    "a context longer than its block table": (lambda c: dict(context_lens=np.array([20, 400])), "columns"),
    "a block that does not exist": (lambda c: dict(block_tables=c.block_tables + 1000), "outside the cache"),
    "blocks with room for no token": (
        lambda c: {name: np.zeros((9, 0, 2, 8), np.float32) for name in ("k_cache", "v_cache")},
        "at least one token",
    ),
    "a scale that is none": (lambda c: dict(scale=None), "scale is None"),
    "a window of no tokens": (lambda c: dict(window=0), "from 1 on"),
    "a window that is no number": (lambda c: dict(window=2.5), "window is 2.5"),
    "a negative block": (lambda c: dict(block_tables=-1 - c.block_tables), "outside the cache"),
}


@versions
@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD.keys())
def test_arrays_that_do_not_fit_are_refused_with_a_sentence(paged_attention, change, message):
    case = Case([(20, 4), (3, 1)], 4, 2, 2, 8, seed=4)
    with pytest.raises(KernelArgumentError, match=message) as refusal:
        paged_attention(**case.arguments(**change(case)))
    assert isinstance(refusal.value, MinipageError | ValueError)
