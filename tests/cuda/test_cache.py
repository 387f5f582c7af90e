"""Writing, copying and swapping K and V on the GPU does what it does on the CPU, to the bit."""

import numpy as np
import pytest
from where import SIMULATOR, from_gpu, long, on_gpu, through_gpu

from minipage.attention import KVCache, cuda
from minipage.attention import copy_blocks as copy_on_cpu
from minipage.attention import write_kv as write_on_cpu
from minipage.attention.cuda.device_arrays import pinned
from minipage.attention.quantize import numbers_of
from minipage.errors import KernelArgumentError
from minipage.memory import BlockCopy
from minipage.simd.halves import to_bfloat16

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8, "fp8": np.uint8}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


class OnGpu:
    """A KVCache's arrays on the GPU."""

    def __init__(self, cache, place=on_gpu):
        self.arrays = [place(array) for array in cache.arrays]

    def assert_equal(self, cache):
        for ours, expected in zip(self.arrays, cache.arrays):
            np.testing.assert_array_equal(from_gpu(ours), expected)


def in_pinned_memory(array):
    copy = pinned(array.shape, array.dtype)
    copy[...] = array
    return copy


def random_cache(dtype, num_blocks=6, head_size=8, seed=0):
    cache = KVCache(2, num_blocks, 4, 2, head_size, dtype)
    rng = np.random.default_rng(seed)
    for array in cache.arrays:
        array[...] = rng.integers(1, 100, array.shape)
    return cache


@dtypes
@pytest.mark.parametrize("head_size", [4, 40])
def test_each_token_goes_into_its_slot_and_nowhere_else(dtype, head_size):
    cache = random_cache(dtype, head_size=head_size)
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal((5, 3, 2, head_size)).astype(np.float32) * 10.0 ** rng.integers(-3, 3, (5, 3, 2, 1))
    numbers[1] = 0
    k, v = (
        np.asarray(numbers, np.float32)[:, 0],
        np.asarray(numbers, np.float32)[:, 1],
    )  # rows of one array [T, 3, KH, D]
    slots = np.array([7, 0, 23, 8, 11])
    ours = OnGpu(cache)
    layer = [array[1] for array in ours.arrays]
    cuda.write_kv(*np_rows(k, v), *layer[:2], on_gpu(slots), *layer[2:])
    write_on_cpu(k, v, cache.k[1], cache.v[1], slots, *[array[1] for array in cache.arrays[2:]])
    ours.assert_equal(cache)


def np_rows(k, v):
    """Both of them on the GPU: K as a part of one array with V, and V by itself, as after a rotation of one of them."""
    v = np.ascontiguousarray(v)
    if SIMULATOR:
        return k, v
    return on_gpu(np.stack([k, v, k], axis=1))[:, 0], on_gpu(v)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_new_k_and_v_may_have_two_bytes_a_number(name):
    numbers = np.random.default_rng(1).standard_normal((2, 4, 2, 8)).astype(np.float32)
    new = numbers.astype(np.float16) if name == "float16" else to_bfloat16(numbers)
    for dtype in (new.dtype, np.float32, np.int8):
        cache = random_cache(dtype)
        ours, slots = OnGpu(cache), np.array([3, 9, 1, 20])
        layer = [array[0] for array in ours.arrays]
        cuda.write_kv(*map(on_gpu, new), *layer[:2], on_gpu(slots), *layer[2:])
        plain = new.astype(np.float32) if name == "float16" else (new.astype(np.uint32) << 16).view(np.float32)
        write_on_cpu(*plain, cache.k[0], cache.v[0], slots, *[array[0] for array in cache.arrays[2:]])
        ours.assert_equal(cache)


def test_a_token_without_a_slot_is_written_nowhere():
    cache = random_cache(np.float32)
    ours, new = OnGpu(cache), np.ones((2, 2, 8), np.float32)
    launch = through_gpu(lambda k, v, slots: cuda.launch_write_kv(k, v, ours.arrays[0][0], ours.arrays[1][0], slots))
    launch(new, new, np.array([-1, -1]))
    ours.assert_equal(cache)


@pytest.mark.parametrize("slots", [[0, 24], [-1, 0], [0], [0, 1, 2]])
def test_slots_outside_the_cache_or_of_another_number_are_refused_and_nothing_is_written(slots):
    cache = random_cache(np.float32)
    ours, new = OnGpu(cache), on_gpu(np.ones((2, 2, 8), np.float32))
    with pytest.raises(KernelArgumentError):
        cuda.write_kv(new, new, ours.arrays[0][0], ours.arrays[1][0], on_gpu(np.array(slots)))
    ours.assert_equal(cache)


@dtypes
@pytest.mark.parametrize("head_size", [2, 8])  # blocks of 8-byte pieces, and of 16-byte ones
@pytest.mark.parametrize(
    "copies",
    [
        long([BlockCopy(0, 3), BlockCopy(0, 4), BlockCopy(5, 1)]),
        [BlockCopy(2, 0), BlockCopy(0, 1), BlockCopy(0, 4)],  # blocks 1 and 4 get what block 0 was
        long([BlockCopy(2, 0), BlockCopy(0, 2)]),
        [],
    ],
)
def test_copies_are_whole_blocks_in_every_layer_with_their_scales(dtype, head_size, copies):
    cache = random_cache(dtype, head_size=head_size)
    ours = OnGpu(cache)
    cuda.copy_blocks(ours, ours, copies)
    copy_on_cpu(cache, cache, copies)
    ours.assert_equal(cache)


@dtypes
def test_blocks_are_swapped_to_pinned_memory_and_back(dtype):
    cache, host = random_cache(dtype), random_cache(dtype, num_blocks=9, seed=1)
    ours, pinned_cache = OnGpu(cache), OnGpu(host, in_pinned_memory)
    for source, destination, copies in (
        ("gpu", "host", [BlockCopy(5, 8), BlockCopy(1, 0)]),
        ("host", "gpu", [BlockCopy(8, 2)]),
    ):
        here, there = {"gpu": ours, "host": pinned_cache}, {"gpu": cache, "host": host}
        cuda.copy_blocks(here[source], here[destination], copies)
        copy_on_cpu(there[source], there[destination], copies)
    ours.assert_equal(cache)  # fetched in the same stream, after the copies
    pinned_cache.assert_equal(host)


LARGE = np.array([1, 65_504, 65_519, 65_520, -70_000, 3e38, -3e38, 0], np.float32)


@dtypes
@pytest.mark.parametrize("last", [0, np.inf, -np.inf, np.nan], ids=str)
def test_what_is_too_large_is_kept_as_the_largest_number_and_infinities_and_nan_are_seen(dtype, last):
    k = v = np.broadcast_to(LARGE, (3, 2, 8)).copy()
    k[1, :, 7] = last
    cache = random_cache(dtype)
    ours, slots = OnGpu(cache), np.array([3, 9, 1])
    layer = [array[0] for array in ours.arrays]
    cuda.write_kv(on_gpu(k), on_gpu(v), *layer[:2], on_gpu(slots), *layer[2:])
    write_on_cpu(k, v, cache.k[0], cache.v[0], slots, *[array[0] for array in cache.arrays[2:]])
    kept, expected = (
        numbers_of(
            from_gpu(a[0]).reshape(24, 2, 8)[slots], from_gpu(a[1]).reshape(24, 2)[slots] if len(a) > 1 else None
        )
        for a in ((layer[0], *layer[2:3]), (cache.k[0], *[s[0] for s in cache.arrays[2:3]]))
    )
    np.testing.assert_array_equal(kept, expected)


def test_of_tokens_with_the_same_slot_the_last_one_stays():
    cache = random_cache(np.float32)
    ours, new = OnGpu(cache), np.random.default_rng(0).standard_normal((40, 2, 8)).astype(np.float32)
    slots = np.random.default_rng(1).integers(0, 24, 40).astype(np.uint8)
    cuda.write_kv(on_gpu(new), on_gpu(-new), ours.arrays[0][0], ours.arrays[1][0], on_gpu(slots))
    write_on_cpu(new, -new, cache.k[0], cache.v[0], slots)
    ours.assert_equal(cache)


def test_of_copies_to_the_same_block_the_last_one_counts():
    cache = random_cache(np.float32)
    ours, copies = OnGpu(cache), [BlockCopy(0, 3), BlockCopy(1, 3), BlockCopy(3, 4)]
    cuda.copy_blocks(ours, ours, copies)
    copy_on_cpu(cache, cache, copies)
    ours.assert_equal(cache)


@pytest.mark.parametrize("copies", [[(0, 6)], [(6, 0)], [(-1, 0)], [(0, -1)], [(0.5, 1)], [(0, 1, 2)], ["ab"], [None]])
def test_copies_of_blocks_that_do_not_exist_are_refused(copies):
    cache = random_cache(np.float32)
    ours = OnGpu(cache)
    for copy, blocks in ((cuda.copy_blocks, ours), (copy_on_cpu, cache)):
        with pytest.raises(KernelArgumentError, match="copies"):
            copy(blocks, blocks, copies)
    ours.assert_equal(random_cache(np.float32))


def test_blocks_that_are_not_made_of_whole_words_are_refused():
    ours = OnGpu(KVCache(2, 6, 1, 1, 2, np.int8))
    with pytest.raises(KernelArgumentError, match="pieces of 4 bytes"):
        cuda.copy_blocks(ours, ours, [(0, 1)])
