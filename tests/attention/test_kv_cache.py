"""Writing K and V into slots, and copying blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minipage.attention import KVCache, blocks_that_fit, copy_blocks, reference, write_kv
from minipage.attention.quantize import numbers_of
from minipage.errors import ConfigurationError, KernelArgumentError, shown
from minipage.memory import BlockCopy


def random_cache(num_layers=2, num_blocks=6, block_size=4, num_kv_heads=2, head_size=3, seed=0):
    cache = KVCache(num_layers, num_blocks, block_size, num_kv_heads, head_size)
    rng = np.random.default_rng(seed)
    cache.k[:], cache.v[:] = rng.standard_normal((2, *cache.k.shape))
    return cache


def test_a_new_cache_is_all_zeros_because_zero_weight_times_nan_is_nan():
    cache = KVCache(2, 6, 4, 2, 3)
    assert cache.k.shape == cache.v.shape == (2, 6, 4, 2, 3)
    assert not cache.k.any() and not cache.v.any()
    assert cache.nbytes == 2 * 2 * 6 * 4 * 2 * 3 * 4


def test_the_k_of_a_block_is_contiguous_memory():
    assert KVCache(2, 6, 4, 2, 3).k[1, 5].flags.c_contiguous


@given(slots=st.lists(st.integers(0, 23), unique=True, max_size=24))
def test_each_token_goes_into_its_slot_and_nowhere_else(slots):
    cache = random_cache()
    k, v = np.random.default_rng(1).standard_normal((2, len(slots), 2, 3)).astype(np.float32)
    expected = {(slot // 4, slot % 4): (k[i], v[i]) for i, slot in enumerate(slots)}
    before = cache.k.copy(), cache.v.copy()
    write_kv(k, v, cache.k[1], cache.v[1], np.array(slots, int))
    for block, offset in np.ndindex(6, 4):
        new_k, new_v = expected.get((block, offset), (before[0][1, block, offset], before[1][1, block, offset]))
        np.testing.assert_array_equal(cache.k[1, block, offset], new_k)
        np.testing.assert_array_equal(cache.v[1, block, offset], new_v)
    np.testing.assert_array_equal(cache.k[0], before[0][0], "another layer was written")


def test_copies_are_whole_blocks_in_every_layer_of_k_and_v():
    cache, before = random_cache(), random_cache()
    copy_blocks(cache, cache, [BlockCopy(0, 3), BlockCopy(0, 4), BlockCopy(5, 1)])
    for block, source in enumerate([0, 5, 2, 0, 0, 5]):
        np.testing.assert_array_equal(cache.k[:, block], before.k[:, source])
        np.testing.assert_array_equal(cache.v[:, block], before.v[:, source])


def test_a_block_copied_from_and_to_in_one_batch_gives_its_old_contents():
    cache, before = random_cache(), random_cache()
    copy_blocks(cache, cache, [BlockCopy(2, 0), BlockCopy(0, 1)])
    np.testing.assert_array_equal(cache.k[:, 1], before.k[:, 0])
    np.testing.assert_array_equal(cache.k[:, 0], before.k[:, 2])


def test_blocks_are_copied_from_one_cache_to_another_with_their_scales():
    for dtype in (np.float32, np.int8):
        here, there = KVCache(2, 4, 4, 2, 3, dtype), KVCache(2, 9, 4, 2, 3, dtype)
        rng = np.random.default_rng(0)
        for array in here.arrays:
            array[:] = rng.integers(1, 100, array.shape)
        copy_blocks(here, there, [BlockCopy(3, 8), BlockCopy(1, 0)])
        for old, new in zip(here.arrays, there.arrays):
            np.testing.assert_array_equal(new[:, [8, 0]], old[:, [3, 1]])
            assert not new[:, 1:8].any()


def test_no_copies_change_nothing():
    cache = random_cache()
    copy_blocks(cache, cache, [])
    np.testing.assert_array_equal(cache.k, random_cache().k)


@pytest.mark.parametrize("slots", [[0, 24], [-1, 0], [0], [0, 1, 2]])
def test_slots_outside_the_cache_or_of_another_number_are_refused_and_nothing_is_written(slots):
    cache = random_cache()
    k = v = np.ones((2, 2, 3), np.float32)
    with pytest.raises(KernelArgumentError):
        write_kv(k, v, cache.k[0], cache.v[0], np.array(slots))
    np.testing.assert_array_equal(cache.k, random_cache().k)


def test_a_cache_that_is_not_contiguous_is_refused_rather_than_written_to_a_copy():
    cache = random_cache()
    k = v = np.ones((1, 2, 3), np.float32)
    with pytest.raises(KernelArgumentError, match="contiguous"):
        write_kv(k, v, cache.k[0][:, ::2], cache.v[0][:, ::2], np.array([0]))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16, np.int8, np.uint8])
def test_numbers_too_large_for_a_cache_are_kept_finite_and_infinities_and_nan_are_never_hidden(dtype):
    cache = KVCache(1, 2, 4, 1, 4, dtype)
    layer = [array[0] for array in cache.arrays]
    rows = np.array([[7e4, -1e30, 3, 0], [np.inf, 1, 2, 3], [1, 2, -np.inf, 3], [1, 2, 3, np.nan]], np.float32)
    write_kv(rows[:, None], rows[:, None], *layer[:2], np.arange(4), *layer[2:])
    scales = layer[2].reshape(8, 1)[:4] if len(layer) > 2 else None
    kept = numbers_of(layer[0].reshape(8, 1, 4)[:4], scales)[:, 0]
    assert np.isfinite(kept[0]).all()
    if dtype == np.float16:
        assert kept[0].tolist() == [65_504, -65_504, 3, 0]
    assert not np.isfinite([kept[1, 0], kept[2, 2]]).any()
    assert np.isnan(kept[3, 3])


def test_of_tokens_with_the_same_slot_the_last_one_stays():
    cache = random_cache()
    k = v = np.random.default_rng(1).standard_normal((3, 2, 3)).astype(np.float32)
    write_kv(k, v, cache.k[0], cache.v[0], [5, 7, 5])
    np.testing.assert_array_equal(cache.k[0, 1, 1], k[2])
    np.testing.assert_array_equal(cache.k[0, 1, 3], k[1])


@pytest.mark.parametrize("copies", [None, 5, np.array(3), np.ma.array([[0, 1]], mask=[[False, True]]), object(), "ab"])
def test_copies_that_are_no_pairs_are_refused(copies):
    cache = random_cache()
    before = cache.k.copy()
    with pytest.raises(KernelArgumentError, match="copies"):
        copy_blocks(cache, cache, copies)
    np.testing.assert_array_equal(cache.k, before)


@pytest.mark.parametrize("form", [iter, tuple, np.array, np.ma.array, lambda pairs: (pair for pair in pairs)])
def test_copies_may_come_in_anything_that_holds_pairs(form):
    cache, before = random_cache(), random_cache()
    copy_blocks(cache, cache, form([(0, 3), (5, 1)]))
    np.testing.assert_array_equal(cache.k[:, 3], before.k[:, 0])
    np.testing.assert_array_equal(cache.v[:, 1], before.v[:, 5])


@pytest.mark.parametrize("name", ["block_tables", "context_lens", "query_start_loc", "q", "scale"])
def test_a_masked_array_is_refused_unless_nothing_is_masked(name):
    cache = random_cache()
    q = np.ones((1, 2, 3), np.float32)
    arguments = {"q": q, "block_tables": [[1]], "context_lens": [2], "query_start_loc": [0, 1], "scale": 1.0}
    expected = reference.paged_attention(k_cache=cache.k[0], v_cache=cache.v[0], **arguments)
    given = np.ma.array(arguments[name])
    out = reference.paged_attention(k_cache=cache.k[0], v_cache=cache.v[0], **arguments | {name: given})
    np.testing.assert_array_equal(out, expected)
    given = np.ma.array(arguments[name], mask=True)
    with pytest.raises(KernelArgumentError, match=name):
        reference.paged_attention(k_cache=cache.k[0], v_cache=cache.v[0], **arguments | {name: given})


def test_a_scale_of_too_many_digits_is_refused():
    cache, q = random_cache(), np.ones((1, 2, 3), np.float32)
    with pytest.raises(KernelArgumentError, match="scale is"):
        reference.paged_attention(q, cache.k[0], cache.v[0], [[1]], [2], [0, 1], 10**5000)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16, np.int8, np.uint8])
def test_as_many_blocks_fit_as_have_room(dtype):
    one = KVCache(3, 1, 5, 2, 7, dtype).nbytes
    assert [blocks_that_fit(n, 5, 3, 2, 7, dtype) for n in (one, 2 * one - 1, 2 * one)] == [1, 1, 2]
    with pytest.raises(ConfigurationError, match="too small"):
        blocks_that_fit(one - 1, 5, 3, 2, 7, dtype)


@pytest.mark.parametrize("memory", ["1" + "0" * 400, 10**5000, 2**63, "9000000000 GiB", "9" * 5000 + "tb"], ids=shown)
def test_more_memory_than_there_can_be_is_refused(memory):
    with pytest.raises(ConfigurationError, match=r"memory is .* must be a number of bytes"):
        blocks_that_fit(memory, 16, 2, 2, 3)


@pytest.mark.parametrize("block_size", [10**12, 10**30, np.int64(2**62), 10**5000], ids=shown)
def test_a_huge_block_is_not_made_to_see_that_it_does_not_fit(block_size):
    with pytest.raises(ConfigurationError, match="too small for one block"):
        blocks_that_fit("1GiB", block_size, 2, 2, 3)
