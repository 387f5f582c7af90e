"""K and V in one byte a number: what is stored, how far off it may be, and that every kernel reads it alike."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from where import versions

from minipage.attention import KVCache, blocks_that_fit, reference, write_kv
from minipage.attention.quantize import dequantize, kv_dtype, quantize
from minipage.errors import ConfigurationError, KernelArgumentError
from minipage.simd.fp8 import FP8_VALUES, fp8_codes

dtypes = pytest.mark.parametrize("name", ["int8", "fp8"])
magnitudes = st.floats(2.0**-60, 1e4, width=32)  # scales of numbers near the smallest there are would be 0
rows = arrays(np.float32, (5, 8), elements=st.just(0.0) | magnitudes | magnitudes.map(lambda x: -x))


def test_the_256_numbers_of_fp8_are_those_of_pytorch():
    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(FP8_VALUES, theirs)


@given(rows)
def test_fp8_rounds_as_pytorch_does(numbers):
    numbers = np.clip(numbers, -448, 448)
    theirs = torch.tensor(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    np.testing.assert_array_equal(fp8_codes(numbers), theirs)


@given(rows)
def test_int8_is_off_by_at_most_half_a_step(numbers):
    codes, scales = quantize(numbers, np.int8)
    largest = np.abs(numbers).max(axis=-1, keepdims=True)
    assert (np.abs(dequantize(codes, scales) - numbers) <= largest / 254 * 1.001).all()


@given(rows)
def test_fp8_is_off_by_at_most_a_sixteenth_or_half_the_smallest_step(numbers):
    codes, scales = quantize(numbers, np.uint8)
    largest = np.abs(numbers).max(axis=-1, keepdims=True)
    allowed = np.maximum(np.abs(numbers) / 16, largest / 448 * 2**-10)
    assert (np.abs(dequantize(codes, scales) - numbers) <= allowed * 1.001 + 1e-30).all()


def test_zeros_stay_zeros():
    for dtype in (np.int8, np.uint8):
        codes, scales = quantize(np.zeros((2, 4), np.float32), dtype)
        assert not codes.any() and not scales.any() and not dequantize(codes, scales).any()


@versions
@dtypes
def test_attention_over_a_quantized_cache_is_attention_over_what_it_stands_for(paged_attention, name):
    rng = np.random.default_rng(0)
    cache = KVCache(1, 12, 4, 2, 8, kv_dtype(name))
    k, v = rng.standard_normal((2, 30, 2, 8)).astype(np.float32)
    slots = rng.permutation(48)[:30]
    tables = np.arange(12)[None]  # one sequence that owns all blocks; of the slots nobody wrote it sees zeros
    write_kv(k, v, cache.k[0], cache.v[0], slots, cache.k_scales[0], cache.v_scales[0])
    q = rng.standard_normal((3, 4, 8)).astype(np.float32)
    where = tables, np.array([48]), np.array([0, 3]), 8**-0.5
    got = paged_attention(q, cache.k[0], cache.v[0], *where, cache.k_scales[0], cache.v_scales[0])
    plain_k, plain_v = dequantize(cache.k[0], cache.k_scales[0]), dequantize(cache.v[0], cache.v_scales[0])
    np.testing.assert_allclose(got, reference.paged_attention(q, plain_k, plain_v, *where), atol=1e-5)
    assert 1e-5 < np.abs(plain_k.reshape(48, 2, 8)[slots] - k).max() < 0.15


@versions
@dtypes
@pytest.mark.parametrize("heads, kv_heads, head_size", [(2, 2, 64), (4, 1, 80), (2, 1, 12)])
def test_attention_over_a_quantized_cache_is_exact_in_long_contexts_too(
    paged_attention, name, heads, kv_heads, head_size
):
    rng = np.random.default_rng(1)
    num_tokens, block_size = 150, 4
    cache = KVCache(1, 40, block_size, kv_heads, head_size, kv_dtype(name))
    tables = rng.permutation(40)[None, :38]
    slots = (tables[0, :, None] * block_size + np.arange(block_size)).reshape(-1)[:num_tokens]
    k, v = rng.standard_normal((2, num_tokens, kv_heads, head_size)).astype(np.float32)
    v *= np.geomspace(1e-3, 1e3, num_tokens, dtype=np.float32)[:, None, None]  # scales of very different sizes
    write_kv(k, v, cache.k[0], cache.v[0], slots, cache.k_scales[0], cache.v_scales[0])
    q = rng.standard_normal((1, heads, head_size)).astype(np.float32)
    where = tables, np.array([num_tokens]), np.array([0, 1]), head_size**-0.5
    got = paged_attention(q, cache.k[0], cache.v[0], *where, cache.k_scales[0], cache.v_scales[0])
    plain = (dequantize(c[0], s[0]) for c, s in ((cache.k, cache.k_scales), (cache.v, cache.v_scales)))
    expected = reference.paged_attention(q.astype(float), *(a.astype(float) for a in plain), *where)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@dtypes
def test_the_same_memory_holds_two_to_four_times_as_many_blocks(name):
    few = blocks_that_fit("8MiB", 16, 4, 4, 64)
    many = blocks_that_fit("8MiB", 16, 4, 4, 64, kv_dtype(name))
    assert 2 * few <= many <= 4 * few
    assert KVCache(4, many, 16, 4, 64, kv_dtype(name)).nbytes <= 8 * 2**20


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigurationError, match=r"int4.+float32.+int8, fp8"):
        kv_dtype("int4")


@versions
def test_a_quantized_cache_without_scales_is_refused_and_so_are_scales_without_one(paged_attention):
    q = np.ones((1, 1, 4), np.float32)
    where = np.array([[0]]), np.array([1]), np.array([0, 1]), 1.0
    scales = np.ones((2, 4, 1), np.float32)
    for dtype, given_scales in ((np.int8, ()), (np.int8, (scales[:1], scales)), (np.float32, (scales, scales))):
        cache = np.zeros((2, 4, 1, 4), dtype)
        with pytest.raises(KernelArgumentError, match="scales"):
            paged_attention(q, cache, cache, *where, *given_scales)
