"""Writing K and V into their slots, and copying blocks, on the GPU; to and from pinned memory too: swapping.

Each is one launch, however many tokens, blocks or layers: a launch costs a few microseconds, and a copy of a block far
less than one. The GPU reads and writes pinned memory itself, so that swapping is the same kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from minipage.attention.arguments import as_integers, check_copies, check_scales
from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types, upload
from minipage.attention.cuda.device_arrays import (
    Array,
    Layout,
    check_devices,
    check_rows,
    elements,
    empty,
    is_writable,
    layout,
    stream_of,
    to_device,
    to_host,
    words,
)
from minipage.attention.cuda.kinds import FLOAT16, Kind, kind_of
from minipage.attention.cuda.ptx import load_16_bytes, order_of_kernels, store_16_bytes
from minipage.attention.kv_cache import KVCache
from minipage.errors import require
from minipage.memory import BlockCopy
from minipage.simd.halves import LARGEST_FLOAT16

float32 = types.float32
WARP = 32
NUM_WARPS = 4  # of a block that writes
COPY_THREADS = 256  # of a block that copies


def write_kv(
    k: Array,
    v: Array,
    k_cache: Array,
    v_cache: Array,
    slot_mapping: Array,
    k_scales: Array | None = None,
    v_scales: Array | None = None,
) -> None:
    """`minipage.attention.write_kv` for arrays on the GPU: K and V of new tokens into their slots, in one layer.

    k, v: [num_tokens, num_kv_heads, head_size] float32, float16 or bfloat16, the last two axes contiguous. They are
    rounded to what the cache is made of, or quantized with a scale for each row. Raises KernelArgumentError if the
    arrays do not fit together or a slot does not exist; nothing was written then.
    """
    check_cache(k_cache, v_cache, k_scales, v_scales)
    for array in (k_cache, v_cache, k_scales, v_scales):
        require(is_writable(array), "the caches and their scales must not be read-only.")
    layout(slot_mapping)  # raises, if it is not on the GPU
    check_devices(k, v, k_cache, v_cache, slot_mapping, k_scales, v_scales)
    cache_shape = layout(k_cache).shape
    slots = as_integers("slot_mapping", to_host(slot_mapping))  # [num_tokens]
    for new in (k, v):
        require(
            slots.ndim == 1
            and layout(new).shape == (len(slots), *cache_shape[2:])
            and layout(new).dtype == layout(k).dtype,
            f"cannot write K or V of shape {layout(new).shape} with a slot_mapping of shape {slots.shape} into a cache "
            f"of shape {cache_shape}: [num_tokens, num_kv_heads, head_size], of one dtype, and a slot for each token "
            "are needed.",
        )
    require(not kind_of(layout(k).dtype, "k").is_quantized, "new K and V must be float32, float16 or bfloat16.")
    num_slots = cache_shape[0] * cache_shape[1]
    require(
        len(slots) == 0 or (slots.min() >= 0 and slots.max() < num_slots),
        f"slot_mapping points outside the cache, which has slots 0 to {num_slots - 1}.",
    )
    if 0 in layout(k).shape:
        return
    check_rows("k", k)
    check_rows("v", v)
    _, last = np.unique(slots[::-1], return_index=True)  # [num different slots]; counted from the end
    written = np.full_like(slots, -1)  # [num_tokens]; threads write in any order, so only the last token of a slot does
    written[len(slots) - 1 - last] = slots[len(slots) - 1 - last]
    launch_write_kv(k, v, k_cache, v_cache, to_device(k, written), k_scales, v_scales, stream=stream_of(k))


def check_cache(k_cache: Array, v_cache: Array, k_scales: Array | None, v_scales: Array | None) -> None:
    """Raise KernelArgumentError unless kernels can find a row of K or V, and its scale, by its number."""
    where, where_v = layout(k_cache), layout(v_cache)
    scales = [None if array is None else layout(array) for array in (k_scales, v_scales)]
    require(
        len(where.shape) == 4 and where.shape == where_v.shape and where.dtype == where_v.dtype,
        f"k_cache has shape {where.shape} and v_cache {where_v.shape}; both must be [num_blocks, block_size, "
        "num_kv_heads, head_size], of the same numbers.",
    )
    check_scales(kind_of(where.dtype, "k_cache").is_quantized, where.shape, *scales)
    for array in (where, where_v, *scales):
        require(
            array is None or array.num_contiguous == len(array.shape),
            "the caches and their scales must be contiguous in all axes, so that a block is one piece of memory: copy "
            "them first.",
        )
        require(
            array is None or array.address % array.dtype.itemsize == 0,
            "the caches and their scales must start at a multiple of the size of their numbers.",
        )


def launch_write_kv(
    k: Array,
    v: Array,
    k_cache: Array,
    v_cache: Array,
    slot_mapping: Array,
    k_scales: Array | None = None,
    v_scales: Array | None = None,
    *,
    stream: int = 0,
) -> None:
    """`write_kv` with nothing checked; slot_mapping is int32 or int64. A token with a negative slot is not written."""
    where = layout(k)
    num_tokens, num_kv_heads, head_size = where.shape
    if num_tokens == 0:
        return
    write = write_kernel(kind_of(where.dtype, "k"), kind_of(layout(k_cache).dtype, "k_cache"), head_size)
    grid = -(-num_tokens * num_kv_heads // NUM_WARPS), 2
    write[grid, NUM_WARPS * WARP, external_stream(stream)](
        words(k), words(v), elements(k_cache), elements(v_cache),
        *(elements(slot_mapping) if scales is None else elements(scales) for scales in (k_scales, v_scales)),
        elements(slot_mapping), *(layout(new).strides[0] // where.dtype.itemsize for new in (k, v)), num_tokens,
        num_kv_heads,
    )  # fmt: skip


@cache
def write_kernel(new_kind: Kind, kv: Kind, head_size: int) -> Any:
    """One warp for each row of K, and of V."""
    write_row = row_writer(new_kind, kv, head_size)
    let_next_begin, wait_for_last = order_of_kernels()

    def write(k, v, k_cache, v_cache, k_scales, v_scales, slot_mapping, k_stride, v_stride, num_tokens, num_kv_heads):
        let_next_begin()
        wait_for_last()
        lane = cuda.threadIdx.x % WARP
        item = cuda.blockIdx.x * NUM_WARPS + cuda.threadIdx.x // WARP
        token, head = item // num_kv_heads, item % num_kv_heads
        if token >= num_tokens or slot_mapping[token] < 0:
            return
        row = slot_mapping[token] * num_kv_heads + head
        if cuda.blockIdx.y == 0:
            write_row(k, token * k_stride + head * head_size, k_cache, k_scales, row, lane)
        else:
            write_row(v, token * v_stride + head * head_size, v_cache, v_scales, row, lane)

    return kernel(write, fastmath=False, overlaps=True)


def newest_writer(new_kind: Kind, kv: Kind, head_size: int) -> Any:
    """For a block that attends to one token: its K and V, of one head, into their slot, before any of it is read."""
    write_row = row_writer(new_kind, kv, head_size)

    def write_newest(k, v, slot, k_cache, v_cache, k_scales, v_scales, k_stride, v_stride, token, head, num_kv_heads):
        lane, warp = cuda.threadIdx.x % WARP, cuda.threadIdx.x // WARP
        if slot >= 0:
            row = slot * num_kv_heads + head
            if warp == 0:
                write_row(k, token * k_stride + head * head_size, k_cache, k_scales, row, lane)
            elif warp == 1:
                write_row(v, token * v_stride + head * head_size, v_cache, v_scales, row, lane)
        cuda.syncthreads()

    return device_function(write_newest)


def row_writer(new_kind: Kind, kv: Kind, head_size: int) -> Any:
    """A warp writes the numbers new[start ...] as a row of a cache, and its scale."""
    PER_WORD, number = new_kind.per_word, new_kind.number
    MINE = -(-head_size // WARP)  # numbers of a lane
    QUANTIZED, LARGEST = kv.is_quantized, np.float32(kv.largest)
    INFINITY = np.float32(np.inf)
    stored, limited = kv.stored, limiter(kv)
    larger = device_function(larger_or_nan, fastmath=False)

    def write_row(new, start, cache, scales, row, lane):
        x = cuda.local.array(MINE, float32)
        for j in range(MINE):
            at = start + min(lane + j * WARP, head_size - 1)
            x[j] = number(new[at // PER_WORD], at % PER_WORD)
        scale, largest = float32(1), float32(0)
        if QUANTIZED:
            for j in range(MINE):
                largest = larger(largest, abs(x[j]))
            for bit in (16, 8, 4, 2, 1):
                largest = larger(largest, cuda.shfl_xor_sync(0xFFFFFFFF, largest, bit))
            if lane == 0:
                scales[row] = largest / LARGEST
            scale = largest / LARGEST if largest > 0 else float32(1)
        for j in range(MINE):
            if QUANTIZED:
                x[j] = x[j] / scale if largest < INFINITY else float32(0)
            if lane + j * WARP < head_size:
                cache[row * head_size + lane + j * WARP] = stored(limited(x[j]))

    # The CPU's `quantize` divides exactly. So do we, and the codes are the same.
    return device_function(write_row, fastmath=False)


def larger_or_nan(a, b):
    """`max` forgets a NaN. In a scale it has to stay, so that all that comes back of its row is NaN."""
    return b if b > a or b != b else a


def limiter(kv: Kind) -> Any:
    """A device function: a number -> what is kept of it. See minipage/simd/halves.py for why infinities stay."""
    LARGEST, INFINITY = np.float32(LARGEST_FLOAT16), np.float32(np.inf)

    def limit(x):
        if LARGEST < abs(x) < INFINITY:
            return LARGEST if x > 0 else -LARGEST
        return x

    return device_function(limit if kv == FLOAT16 else lambda x: x, fastmath=False)


def copy_blocks(source: KVCache, destination: KVCache, copies: Sequence[BlockCopy]) -> None:
    """`minipage.attention.copy_blocks` on the GPU: whole blocks, K and V, in all layers at once.

    Within one cache, or from one to another, of which one may be in pinned memory (`pinned`); in the current stream of
    the library that made the cache on the GPU. All sources are read before any destination is written, and of copies to
    the same block the last one counts. Raises KernelArgumentError if a block does not exist, or the caches hold
    different numbers; nothing was copied then.
    """
    if copies == []:  # as in most steps
        return
    pairs = as_integers("copies", list(copies))  # [num_copies, 2]
    if pairs.size == 0:
        return
    check_copied(pairs, [layout(a) for a in source.arrays], [layout(a) for a in destination.arrays])
    source_of = {new: old for old, new in pairs.tolist()}  # by destination: the last copy counts
    sources, destinations = list(source_of.values()), list(source_of)
    stream = max(stream_of(cache.arrays[0]) for cache in (source, destination))  # pinned memory has none: 0
    if source is destination and set(sources) & set(destinations):  # blocks that are read are written too: in two steps
        places = range(len(sources))
        saved = [empty(a, (a.shape[0], len(sources), *a.shape[2:]), a.dtype) for a in source.arrays]
        launch_copy(source.arrays, saved, sources, places, stream)
        launch_copy(saved, destination.arrays, places, destinations, stream)
    else:
        launch_copy(source.arrays, destination.arrays, sources, destinations, stream)


def check_copied(pairs: Any, old: Sequence[Layout], new: Sequence[Layout]) -> None:
    check_copies(pairs, old, new)
    for array in (*old, *new):
        num_bytes = int(np.prod(array.shape[2:])) * array.dtype.itemsize
        require(
            num_bytes % 4 == array.address % 4 == 0 and array.num_contiguous == len(array.shape),
            f"blocks are copied in pieces of 4 bytes, and must lie in contiguous arrays; these have {num_bytes} bytes.",
        )


def launch_copy(
    old: Sequence[Array], new: Sequence[Array], sources: Sequence[int], destinations: Sequence[int], stream: int
) -> None:
    """Blocks `sources` of the arrays `old`, which are in pairs for K and V, become `destinations` of those of `new`."""
    cuda_stream = external_stream(stream)
    pairs = upload(np.array([sources, destinations], np.int32).T.reshape(-1), cuda_stream)  # [2 * num_copies]
    for old_k, old_v, new_k, new_v in zip(old[::2], old[1::2], new[::2], new[1::2]):  # K and V; then their scales
        num_layers, num_old_blocks, *block_shape = layout(old_k).shape
        num_words = layout(old_k).dtype.itemsize * int(np.prod(block_shape)) // 4  # of a block
        is_wide = num_words % 4 == 0 and all(layout(a).address % 16 == 0 for a in (old_k, old_v, new_k, new_v))
        copy_kernel(is_wide)[(len(sources), num_layers, 2), COPY_THREADS, cuda_stream](
            words(old_k), words(old_v), words(new_k), words(new_v), pairs, num_words,
            num_old_blocks, layout(new_k).shape[1],
        )  # fmt: skip


@cache
def copy_kernel(is_wide: bool) -> Any:
    """A block of threads for each copy, layer, and K or V; is_wide: 16 bytes at a time."""
    WORDS = 4 if is_wide else 1

    @device_function
    def copy_one(old, start, new, to, num_words):
        for i in range(cuda.threadIdx.x * WORDS, num_words, COPY_THREADS * WORDS):
            if is_wide:
                store_16_bytes(new, to + i, load_16_bytes(old, start + i))
            else:
                new[to + i] = old[start + i]

    def copy(old_k, old_v, new_k, new_v, pairs, num_words, old_blocks, new_blocks):
        start = (cuda.blockIdx.y * old_blocks + pairs[2 * cuda.blockIdx.x]) * num_words
        to = (cuda.blockIdx.y * new_blocks + pairs[2 * cuda.blockIdx.x + 1]) * num_words
        if cuda.blockIdx.z == 0:
            copy_one(old_k, start, new_k, to, num_words)
        else:
            copy_one(old_v, start, new_v, to, num_words)

    return kernel(copy)
