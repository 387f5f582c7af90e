"""What the vectors of compiled code hold, against NumPy doing the same number by number."""

import numba
import numpy as np
import pytest
from where import CUDA

from minipage.simd import bfloat16
from minipage.simd.bfloat16 import both_of, products
from minipage.simd.fp8 import FP8_VALUES
from minipage.simd.halves import from_bfloat16, to_bfloat16
from minipage.simd.vectors import (
    LANES,
    exp,
    filled,
    fma,
    highest_of,
    itemsize,
    load,
    load_part,
    prefetch,
    product,
    store,
    store_totals,
    total_of,
)

pytestmark = pytest.mark.skipif(CUDA, reason="about the CPU")

CODES = {  # every number there is in each kind of cache, and what it stands for
    "float16": (np.arange(2**16).astype(np.uint16).view(np.int16), lambda codes: codes.view(np.float16)),
    "bfloat16": (np.arange(2**16).astype(np.uint16), from_bfloat16),
    "int8": (np.arange(-128, 128).astype(np.int8), lambda codes: codes),
    "fp8": (np.arange(256).astype(np.uint8), lambda codes: FP8_VALUES[codes]),
}


@numba.njit
def read_all(codes, out):
    for i in range(0, codes.shape[1], LANES):
        store(out, (0, i), load(codes, (0, i)))
        for n in range(LANES):
            store(out, (n + 1, i), load_part(codes, (0, i), n))


@pytest.mark.parametrize("codes, numbers", CODES.values(), ids=CODES.keys())
def test_every_number_is_read_as_what_it_stands_for(codes, numbers):
    out = np.full((LANES + 1, len(codes)), 7, np.float32)
    read_all(codes[None], out)
    expected = np.asarray(numbers(codes), np.float32)
    np.testing.assert_array_equal(out[0], expected)
    for n in range(LANES):
        is_read = np.arange(len(codes)) % LANES < n
        np.testing.assert_array_equal(out[n + 1], np.where(is_read, expected, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_products(dtype):
    @numba.njit
    def compute(a, b, weight, out):
        acc = filled(weight)
        for i in range(0, a.shape[1], LANES):
            acc = fma(acc, load(a, (0, i)), load(b, (0, i)))
        store(out, (0, 0), fma(acc, weight, load(a, (0, 0))))
        return total_of(acc)

    a, b = np.random.default_rng(0).standard_normal((2, 1, 5 * LANES)).astype(dtype)
    out = np.zeros((1, LANES), dtype)
    total = compute(a, b, dtype(0.5), out)
    acc = 0.5 + (a * b).reshape(5, LANES).sum(axis=0)  # [LANES]
    tolerance = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(total, acc.sum(), rtol=tolerance)
    np.testing.assert_allclose(out[0], acc + dtype(0.5) * a[0, :LANES], rtol=tolerance, atol=tolerance)


def compiled_sums():
    @numba.njit
    def compute(pair, pairs, acc, out):
        store(out, (0, 0), fma(load(acc, (0, 0)), pair, load(pairs, (0, 0))))

    return compute


@pytest.mark.parametrize("has_instruction", [True, False])
def test_sums_of_pairs_of_bfloat16(has_instruction, monkeypatch):
    if has_instruction and not bfloat16.has_instruction():
        pytest.skip("this processor has no AVX512-BF16")
    monkeypatch.setattr(bfloat16, "has_instruction", lambda: has_instruction)
    rng, out = np.random.default_rng(0), np.zeros((1, LANES), np.float32)
    a, b = (to_bfloat16(rng.standard_normal(size)) for size in (2, 2 * LANES))
    pair, pairs = a.view(np.int32)[0], b.view(np.int32)
    acc = rng.standard_normal((1, LANES)).astype(np.float32)
    compiled_sums()(pair, pairs[None], acc, out)
    x, w = from_bfloat16(a).astype(np.float64), from_bfloat16(b).reshape(LANES, 2)
    np.testing.assert_allclose(out[0], acc[0] + w @ x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(acc[0] + products(pair, pairs), acc[0] + w @ x, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(both_of(pairs), w.T)


@numba.njit
def keep(numbers, out):
    store(out, (0, 0), load(numbers, (0, 0)))


def test_a_vector_is_rounded_for_an_array_of_bfloat16():
    for seed in range(20):
        numbers = np.random.default_rng(seed).standard_normal((1, LANES)).astype(np.float32) * 10.0 ** (4 * seed - 42)
        numbers[0, :5] = 0, np.inf, -np.inf, 1 + 2**-7 + 2**-8, 3.4e38  # the fourth lies half way between two
        keep(numbers, out := np.zeros((1, LANES), np.uint16))
        np.testing.assert_array_equal(out, to_bfloat16(numbers))
    keep(np.full((1, LANES), np.nan, np.float32), out := np.zeros((1, LANES), np.uint16))
    assert np.isnan(from_bfloat16(out)).all()


@numba.njit
def bytes_of_a_number(a):
    return itemsize(a)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.float32, np.float64])
def test_the_size_of_a_number_is_known(dtype):
    assert bytes_of_a_number(np.zeros((2, 3), dtype)) == np.dtype(dtype).itemsize


@numba.njit
def totals_and_highest(a, totals, highest):
    prefetch(a, (0,))
    store_totals(totals, (1, 2), (load(a, (0, 0)), load(a, (1, 0)), load(a, (2, 0)), load(a, (3, 0))))
    for i in range(4):
        highest[i] = highest_of(product(load(a, (i, 0)), a.dtype.type(2)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_four_sums_at_once_and_the_highest_number(dtype):
    a = np.random.default_rng(0).standard_normal((4, LANES)).astype(dtype)
    a[0] = -np.inf  # what a row of scores has that sees nothing
    totals, highest = np.zeros((2, 8), dtype), np.zeros(4, dtype)
    totals_and_highest(a, totals, highest)
    tolerance = 10 * np.finfo(dtype).eps
    np.testing.assert_allclose(totals[1, 2:6], a.sum(axis=1), rtol=tolerance, atol=tolerance)
    assert np.delete(totals.ravel(), slice(10, 14)).tolist() == [0] * 12
    np.testing.assert_array_equal(highest, 2 * a.max(axis=1))


@numba.njit
def exponentials(numbers, out):
    for i in range(len(numbers)):
        out[i] = exp(numbers[i])


@pytest.mark.parametrize("dtype, lowest", [(np.float32, -86), (np.float64, -700)])
def test_the_error_of_exp_is_a_unit_of_the_last_place_for_each_unit_of_x(dtype, lowest):
    numbers = np.concatenate([np.linspace(lowest, 0, 100_001), [-1e-9, -0.0]]).astype(dtype)
    out = np.empty_like(numbers)
    exponentials(numbers, out)
    expected = np.exp(numbers.astype(np.longdouble))
    assert (np.abs(out - expected) <= (2 + np.abs(numbers)) * np.finfo(dtype).eps * expected).all()


def test_exp_of_very_little_is_as_good_as_nothing_and_of_nan_is_nan():
    numbers = np.array([-88, -1e30, -np.inf, np.nan], np.float32)
    out = np.empty_like(numbers)
    exponentials(numbers, out)
    assert (np.abs(out[:3]) < 2e-38).all() and np.isnan(out[3])
