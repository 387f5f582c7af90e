"""What strangers hand to the kernels: integers of any kind in any layout, and things that are no arrays at all.

Run by test_strangers.py in a process of its own, because a kernel that reads outside its arrays may end the process.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_paged_attention import Case, assert_close, dense_attention
from where import CUDA, through_gpu, versions

from minipage import attention
from minipage.attention import KVCache, copy_blocks
from minipage.errors import KernelArgumentError

if CUDA:
    from minipage.attention.cuda import write_kv as write_on_gpu

    write_kv = through_gpu(write_on_gpu)
else:
    write_kv = attention.write_kv

INTEGERS = [np.dtype(order + code) for order in "<>" for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
LAYOUTS = {
    "plain": lambda a: a,
    "Fortran": np.asfortranarray,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "unaligned": lambda a: unaligned(a),
    "read-only": lambda a: read_only(a),
    **({} if CUDA else {"a list": lambda a: a_list(a), "a matrix or a memory map": lambda a: a.view(Subclass)}),
}
layouts = st.sampled_from(list(LAYOUTS.values()))
numbers = st.sampled_from(
    [0, 0, 1, 1, 2, 3, 4, 5, 8, 12, 13, 250, -1, -2, 2**31, 2**32 + 4, 2**63 - 1, -(2**63), 2**64 - 4]
)


class Subclass(np.ndarray):
    pass


def unaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def a_list(array):
    """If it says the same: NumPy makes floats of small and very large integers, and the rows of no rows are lost."""
    return array if array.max(initial=0) >= 2**63 or array.shape[:1] == (0,) else array.tolist()


@st.composite
def integers(draw, shape):
    """An array of any numbers of this shape, and the same as a list of Python's, which have no largest."""
    size = int(np.prod(shape))
    return draw(arrays(shape, draw(st.lists(numbers, min_size=size, max_size=size))))


@st.composite
def arrays(draw, shape, values):
    """An array of these values, of any dtype and layout, and what is in it as a list."""
    fitting = [d for d in INTEGERS if all(np.iinfo(d).min <= v <= np.iinfo(d).max for v in values)]
    if not fitting:
        values, fitting = [v % 128 for v in values], INTEGERS
    array = np.array(values, draw(st.sampled_from(fitting))).reshape(shape)
    return draw(layouts)(array), array.tolist()


def is_right(num_tokens, num_blocks, block_size, tables, contexts, starts):
    """Whether kernels can read what these say, in plain Python."""
    if starts[0] != 0 or starts[-1] != num_tokens or starts != sorted(starts):
        return False
    for table, context, start, stop in zip(tables, contexts, starts, starts[1:]):
        num_read = -(-context // block_size)
        if context < stop - start or num_read > len(table) or any(not 0 <= b < num_blocks for b in table[:num_read]):
            return False
    return True


def expected(q, k_cache, v_cache, tables, contexts, starts, scale):
    out = np.zeros(q.shape)
    if out.size == 0:
        return out
    for table, context, start, stop in zip(tables, contexts, starts, starts[1:]):
        table = table[: -(-context // k_cache.shape[1])]
        k, v = (c[table].reshape(-1, *c.shape[2:])[:context].astype(float) for c in (k_cache, v_cache))
        out[start:stop] = dense_attention(q[start:stop].astype(float), k, v, scale)
    return out


@st.composite
def batches(draw):
    """Tables, contexts and starts that are right for blocks of 4, except for up to two numbers; how many queries."""
    lengths = draw(st.lists(st.integers(0, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), max_size=3))
    num_seqs, max_blocks = len(lengths), draw(st.integers(2, 4))
    tables = draw(st.lists(st.integers(0, 2), min_size=num_seqs * max_blocks, max_size=num_seqs * max_blocks))
    contexts, starts = [context for context, _ in lengths], [0]
    for _, num_queries in lengths:
        starts.append(starts[-1] + num_queries)
    num_tokens = starts[-1]
    for _ in range(draw(st.integers(0, 2))):
        changed = draw(st.sampled_from([tables, contexts, starts]))
        if changed:
            changed[draw(st.integers(0, len(changed) - 1))] = draw(numbers)
    shapes = (num_seqs, max_blocks), (num_seqs,), (num_seqs + 1,)
    return *(draw(arrays(*each)) for each in zip(shapes, (tables, contexts, starts))), num_tokens


@versions
@settings(max_examples=40 if not CUDA else 6)
@given(batches(), st.sampled_from([16, 8, 0]))
def test_integers_of_any_kind_are_served_if_they_are_right_and_refused_if_not(paged_attention, batch, head_size):
    (given_tables, tables), (given_contexts, contexts), (given_starts, starts), num_tokens = batch
    rng = np.random.default_rng(num_tokens)
    q, (k, v) = (rng.standard_normal(s).astype("f4") for s in ((num_tokens, 2, head_size), (2, 3, 4, 1, head_size)))
    arguments = np.ascontiguousarray(k), np.ascontiguousarray(v), given_tables, given_contexts, given_starts, 0.25
    right = is_right(num_tokens, 3, 4, tables, contexts, starts)
    try:
        out = paged_attention(q, *arguments)
    except KernelArgumentError:
        assert not right
    else:
        assert right
        assert_close(out, expected(q, k, v, tables, contexts, starts, 0.25), 1e-5)


@versions
@given(st.data(), st.sampled_from([np.uint8, np.int8, np.uint16, np.uint64, np.dtype(">i4")]))
def test_a_right_batch_is_served_whatever_its_integers_are(paged_attention, data, dtype):
    case = Case([(33, 1), (16, 16), (17, 3), (5, 0)], 4, 2, 2, 16, seed=1)
    names = "block_tables", "context_lens", "query_start_loc"
    integers = {name: getattr(case, name).astype(dtype) for name in names}
    integers["block_tables"][case.block_tables < 0] = np.iinfo(dtype).max  # "then anything"
    changed = {name: data.draw(layouts)(array) for name, array in integers.items()}
    assert_close(paged_attention(**case.arguments(**changed)), case.expected, 1e-5)


def float_layouts(array):
    return [
        *(make(array) for make in LAYOUTS.values()),
        array.astype(array.dtype.newbyteorder()),
        np.broadcast_to(array[:1], array.shape),
        array.astype(np.float16), array.astype(object), array > 0, array[0], array[None],
    ]  # fmt: skip


@versions
def test_a_refusal_says_what_is_true_of_numbers_that_int64_does_not_hold(paged_attention):
    case = Case([(9, 1)], 4, 2, 2, 16, seed=2)
    with pytest.raises(KernelArgumentError, match="more than 1,073,741,824"):
        paged_attention(**case.arguments(context_lens=np.array([2**64 - 4], np.uint64)))


@versions
@pytest.mark.parametrize("name", ["q", "k_cache", "v_cache"])
def test_floats_in_any_layout_are_served_or_refused(paged_attention, name):
    case = Case([(9, 1), (5, 5)], 4, 2, 2, 16, seed=2)
    right = case.arguments()
    for given_array in float_layouts(right[name]):
        changed = {name: given_array}
        if name != "q" and not np.asarray(given_array).flags.writeable:  # both: each would be compiled anew
            changed = {"k_cache": read_only(case.k_cache), "v_cache": read_only(case.v_cache)} | changed
        try:
            out = paged_attention(**right | changed)
        except KernelArgumentError:
            continue
        tolerance = 1e-5 if np.asarray(given_array).dtype == np.float32 else 1e-3
        meant = {n: np.asarray(a) for n, a in (right | changed).items()}
        integers = (meant[n].tolist() for n in ("block_tables", "context_lens", "query_start_loc"))
        floats = (meant[n] for n in ("q", "k_cache", "v_cache"))
        assert_close(out, expected(*floats, *integers, case.scale), tolerance)


NUMBERS = [True, 3, 0.5, -1, np.float64(0.1), np.array(5)]  # right for a scale, and for nothing else
ODD = [
    None, float("nan"), float("inf"), "text", b"bytes", 10**400, 1 + 2j, [], [[]], [[1], [1, 2]], [None],
    {}, {1: 2}, {1}, object(), print, np.array([True]), np.zeros(3, "M8[s]"), np.zeros(3, "U4"),
    np.zeros(3, [("a", int)]), np.zeros((0, 0)), np.zeros((2, 0), int), np.zeros((3, 4, 2, 0)), np.array([None, {}]),
    np.ma.masked_array([1, 2], [True, False]), np.zeros((0, 4, 2, 16), "f4"), np.zeros((9, 0, 2, 16), "f4"),
]  # fmt: skip


@versions
@pytest.mark.parametrize("name", [*Case([(1, 1)], 4, 2, 2, 16, 0).arguments(), "k_scales", "v_scales"])
@pytest.mark.parametrize("kept_as", [np.float32, np.int8])
def test_odd_things_are_refused_with_a_sentence(paged_attention, name, kept_as):
    case = Case([(9, 1), (5, 5)], 4, 2, 2, 16, seed=2)
    right = case.arguments()
    if kept_as == np.int8:
        scales = np.ones(case.k_cache.shape[:3], np.float32)
        caches = {n: np.ones(case.k_cache.shape, np.int8) for n in ("k_cache", "v_cache")}
        right |= caches | {"k_scales": scales, "v_scales": scales}
    for thing in ODD if name == "scale" else [*ODD, *NUMBERS]:
        if thing is None and name.endswith("scales") and kept_as == np.float32:
            continue
        with pytest.raises(KernelArgumentError) as refusal:
            paged_attention(**right | {name: thing})
        assert str(refusal.value).endswith((".", ")")) or ": " in str(refusal.value)


def walled(shape, dtype):
    """An array of zeros, and the memory around it, which must stay 7."""
    size = int(np.prod(shape))
    memory = np.full(size + 128, 7, dtype)
    memory[64:-64] = 0
    return memory[64:-64].reshape(shape), (memory[:64], memory[-64:])


@given(
    st.integers(0, 4).flatmap(lambda n: integers((n,))),
    st.sampled_from([np.float32, np.float16, np.uint16, np.int8]),
    layouts,
)
def test_k_and_v_are_written_to_their_slots_or_nowhere(given_slots, dtype, layout):
    slots, meant = given_slots
    shape = (3, 4, 2, 16)
    (k_cache, k_walls), (v_cache, v_walls) = walled(shape, dtype), walled(shape, dtype)
    scales = [np.zeros(shape[:3], np.float32) for _ in range(2)] if dtype == np.int8 else []
    new = np.arange(1, 32 * len(meant) + 1, dtype=np.float32).reshape(-1, 2, 16)
    try:
        write_kv(new if CUDA else layout(new) if len(new) else new, -new, k_cache, v_cache, slots, *scales)
    except KernelArgumentError:
        assert any(not 0 <= slot < 12 for slot in meant)
        assert not k_cache.any() and not v_cache.any()
    else:
        assert all(0 <= slot < 12 for slot in meant)
        last = dict(zip(meant, range(len(meant))))
        for slot in range(12):
            row = k_cache.reshape(12, 2, 16)[slot]
            assert row.any() == (slot in last)
            if slot in last and dtype == np.float32:
                np.testing.assert_array_equal(row, new[last[slot]])
    for wall in (*k_walls, *v_walls):
        assert (wall == 7).all()


@pytest.mark.parametrize("position", range(7))
def test_odd_things_are_never_written(position):
    cache = np.zeros((3, 4, 2, 16), np.int8)
    scales = np.zeros((3, 4, 2), np.float32)
    new = np.ones((1, 2, 16), np.float32)
    right = [new, new, cache, cache.copy(), np.array([3]), scales, scales.copy()]
    for thing in [*ODD, *NUMBERS, read_only(right[position]), right[position][..., ::2], right[position][None]]:
        if (
            position in (0, 1, 4)
            and thing is not None
            and isinstance(thing, np.ndarray)
            and thing.shape == right[position].shape
        ):
            continue  # it is read, not written
        with pytest.raises(KernelArgumentError):
            write_kv(*right[:position], thing, *right[position + 1 :])
    assert not cache.any() and not scales.any()


@pytest.mark.skipif(CUDA, reason="tests/cuda/test_cache.py does it there")
@settings(max_examples=50)
@given(st.integers(0, 3).flatmap(lambda n: integers((n, 2))))
def test_blocks_are_copied_or_nothing_is(given_copies):
    copies, meant = given_copies
    cache = KVCache(2, 3, 4, 1, 2)
    cache.k[:], cache.v[:] = np.arange(3)[:, None, None, None], -np.arange(3)[:, None, None, None]
    blocks = [0, 1, 2]
    if all(0 <= block < 3 for pair in meant for block in pair):
        blocks = [{new: old for old, new in meant}.get(block, block) for block in blocks]
        copy_blocks(cache, cache, copies)
    else:
        with pytest.raises(KernelArgumentError):
            copy_blocks(cache, cache, copies)
    assert cache.k[1, :, 0, 0, 0].tolist() == blocks
