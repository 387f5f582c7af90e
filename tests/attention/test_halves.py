"""K and V in two bytes a number: what is stored, and that every kernel reads it alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from where import versions

from minipage.attention import KVCache, copy_blocks, reference, write_kv
from minipage.attention.quantize import kv_dtype
from minipage.errors import KernelArgumentError
from minipage.memory import BlockCopy
from minipage.simd.bfloat16 import as_float, as_kept
from minipage.simd.halves import from_bfloat16, to_bfloat16
from minipage.simd.options import compiled

names = pytest.mark.parametrize("name", ["bfloat16", "float16"])
EVERY_CODE = np.arange(2**16).astype(np.uint16)


def rounded(numbers, name):
    """The float32 numbers that are left of `numbers` after PyTorch has put them into two bytes."""
    return torch.tensor(numbers).to(getattr(torch, name)).float().numpy()


@given(arrays(np.float32, (4, 5), elements=st.floats(width=32)))
def test_bfloat16_rounds_as_pytorch_does(numbers):
    got, expected = from_bfloat16(to_bfloat16(numbers)), rounded(numbers, "bfloat16")
    np.testing.assert_array_equal(got, expected)
    assert (np.signbit(got) == np.signbit(expected))[~np.isnan(expected)].all()


def test_every_bfloat16_is_the_same_after_a_round_trip():
    numbers = torch.from_numpy(EVERY_CODE).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(from_bfloat16(EVERY_CODE), numbers)
    np.testing.assert_array_equal(to_bfloat16(numbers)[~np.isnan(numbers)], EVERY_CODE[~np.isnan(numbers)])


def test_half_way_between_two_the_even_one_is_chosen():
    below, half_way, above = np.array([0x3F80, 0x3F81, 0x3F82], np.uint16), 0x8000, 1
    bits = (below.astype(np.uint32) << 16) + half_way
    np.testing.assert_array_equal(to_bfloat16(bits.view(np.float32)), [0x3F80, 0x3F82, 0x3F82])
    np.testing.assert_array_equal(to_bfloat16((bits + above).view(np.float32)), [0x3F81, 0x3F82, 0x3F83])
    np.testing.assert_array_equal(to_bfloat16((bits - 1).view(np.float32)), [0x3F80, 0x3F81, 0x3F82])


@versions
@names
def test_attention_over_two_bytes_is_attention_over_the_numbers_they_stand_for(paged_attention, name):
    rng = np.random.default_rng(0)
    cache = KVCache(1, 12, 4, 2, 8, kv_dtype(name))
    assert cache.nbytes == KVCache(1, 12, 4, 2, 8).nbytes / 2
    k, v = rng.standard_normal((2, 30, 2, 8)).astype(np.float32)
    slots = rng.permutation(48)[:30]
    write_kv(k, v, cache.k[0], cache.v[0], slots)
    stored = np.zeros((2, 48, 2, 8), np.float32)
    stored[0, slots], stored[1, slots] = rounded(k, name), rounded(v, name)
    q = rng.standard_normal((6, 4, 8)).astype(np.float32)
    arguments = np.arange(12).reshape(2, 6), np.array([24, 20]), np.array([0, 2, 6]), 8**-0.5
    got = paged_attention(q, cache.k[0], cache.v[0], *arguments)
    expected = reference.paged_attention(q, *stored.reshape(2, 12, 4, 2, 8), *arguments)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_bits_of_bfloat16_go_into_a_cache_of_these_as_they_are():
    numbers = np.random.default_rng(0).standard_normal((2, 5, 2, 8)).astype(np.float32)
    whole, bits = KVCache(1, 3, 4, 2, 8, np.uint16), KVCache(1, 3, 4, 2, 8, np.uint16)
    write_kv(*numbers, whole.k[0], whole.v[0], np.arange(5) + 2)
    write_kv(*to_bfloat16(numbers), bits.k[0], bits.v[0], np.arange(5) + 2)
    np.testing.assert_array_equal(whole.k, bits.k)
    np.testing.assert_array_equal(whole.v, bits.v)
    other = KVCache(1, 3, 4, 2, 8)
    with pytest.raises(KernelArgumentError, match="uint16"):
        write_kv(*to_bfloat16(numbers), other.k[0], other.v[0], np.arange(5))


@names
def test_blocks_of_two_bytes_are_copied_bit_by_bit(name):
    cache = KVCache(1, 4, 4, 2, 3, kv_dtype(name))
    cache.k.view(np.uint16)[:] = np.arange(96).reshape(cache.k.shape) + 0x7F00  # NaNs among them
    copy_blocks(cache, cache, [BlockCopy(1, 3)])
    np.testing.assert_array_equal(cache.k[:, 3].view(np.uint16), cache.k[:, 1].view(np.uint16))


@given(arrays(np.float32, (1, 16), elements=st.floats(width=32, allow_nan=False)))
def test_a_compiled_loop_keeps_bfloat16_as_numpy_does(numbers):
    for kept, back in ((np.empty((1, 16), np.uint16), from_bfloat16), (np.empty((1, 16), np.float32), np.asarray)):
        copy_through_floats(numbers, kept)
        again = np.empty_like(numbers)
        copy_through_floats(kept, again)
        expected = back(to_bfloat16(numbers)) if kept.dtype == np.uint16 else numbers
        np.testing.assert_array_equal(again, expected)
    no_number = np.full((1, 1), np.nan, np.float32)
    copy_through_floats(no_number, kept := np.empty((1, 1), np.uint16))
    assert np.isnan(from_bfloat16(kept))


@compiled
def copy_through_floats(numbers, out):
    for t in range(len(numbers)):
        for i in range(numbers.shape[1]):
            out[t, i] = as_kept(as_float(numbers[t, i]), out)
