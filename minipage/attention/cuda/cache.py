"""Writing K and V into their slots, copying blocks, and swapping them, on the GPU.

Each is one launch, however many tokens, blocks or layers: a launch costs some microseconds, and a copy of a block far
less than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np

from minipage.attention.arguments import check_scales, require
from minipage.attention.cuda.arrays import Array, elements, empty, layout, stream_of, to_host, words
from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types, upload
from minipage.attention.cuda.numbers import Kind, kind_of
from minipage.attention.cuda.ptx import load_16_bytes, store_16_bytes
from minipage.memory import BlockCopy

float32 = types.float32
WARP, NUM_WARPS, COPY_THREADS = 32, 4, 256


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
    cache_shape, slots = layout(k_cache).shape, to_host(slot_mapping)
    for new, kept in ((k, k_cache), (v, v_cache)):
        require(
            layout(new).shape == (len(slots), *cache_shape[2:])
            and layout(new).num_contiguous >= 2
            and layout(kept).num_contiguous == 4
            and layout(kept)[1:] == layout(k_cache)[1:]
            and layout(new)[2:] == layout(k)[2:],
            f"cannot write K or V of shape {layout(new).shape} into {len(slots)} slots of a cache of shape "
            f"{layout(kept).shape}: [num_tokens, num_kv_heads, head_size], laid out alike in K and V, and contiguous "
            "caches are needed.",
        )
    check_scales(kind_of(layout(k_cache).dtype, "k_cache").is_quantized, cache_shape, k_scales, v_scales)
    require(not kind_of(layout(k).dtype, "k").is_quantized, "new K and V must be float32, float16 or bfloat16.")
    num_slots = cache_shape[0] * cache_shape[1]
    require(
        len(slots) == 0 or (slots.min() >= 0 and slots.max() < num_slots),
        f"slot_mapping points outside the cache, which has slots 0 to {num_slots - 1}.",
    )
    launch_write_kv(k, v, k_cache, v_cache, slot_mapping, k_scales, v_scales, stream=stream_of(k))


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
    (num_tokens, num_kv_heads, head_size), strides, dtype = layout(k)[1:]
    if num_tokens == 0:
        return
    write = write_kernel(kind_of(dtype, "k"), kind_of(layout(k_cache).dtype, "k_cache"), head_size)
    grid = -(-num_tokens * num_kv_heads // NUM_WARPS), 2
    write[grid, NUM_WARPS * WARP, external_stream(stream)](
        words(k), words(v), elements(k_cache), elements(v_cache),
        *(elements(slot_mapping) if scales is None else elements(scales) for scales in (k_scales, v_scales)),
        elements(slot_mapping), strides[0] // dtype.itemsize, num_tokens, num_kv_heads,
    )  # fmt: skip


@cache
def write_kernel(new_kind: Kind, kv: Kind, head_size: int) -> Any:
    """One warp for each row of K, and of V."""
    PER_WORD, number = new_kind.per_word, new_kind.number
    QUANTIZED, LARGEST, stored = kv.is_quantized, np.float32(kv.largest), kv.stored

    def write_row(new, start, cache, scales, row, lane):
        scale = float32(1)
        if QUANTIZED:
            largest = float32(0)
            for i in range(lane, head_size, WARP):
                largest = max(largest, abs(number(new[(start + i) // PER_WORD], (start + i) % PER_WORD)))
            for bit in (16, 8, 4, 2, 1):
                largest = max(largest, cuda.shfl_xor_sync(0xFFFFFFFF, largest, bit))
            if lane == 0:
                scales[row] = largest / LARGEST
            scale = largest / LARGEST if largest > 0 else float32(1)
        for i in range(lane, head_size, WARP):
            x = number(new[(start + i) // PER_WORD], (start + i) % PER_WORD)
            cache[row * head_size + i] = stored(x / scale if QUANTIZED else x)

    # The CPU's `quantize` divides exactly. So do we, and the codes are the same.
    write_row = device_function(write_row, fastmath=False)

    def write(k, v, k_cache, v_cache, k_scales, v_scales, slot_mapping, stride, num_tokens, num_kv_heads):
        lane = cuda.threadIdx.x % WARP
        item = cuda.blockIdx.x * NUM_WARPS + cuda.threadIdx.x // WARP
        token, head = item // num_kv_heads, item % num_kv_heads
        if token >= num_tokens or slot_mapping[token] < 0:
            return
        start, row = token * stride + head * head_size, slot_mapping[token] * num_kv_heads + head
        if cuda.blockIdx.y == 0:
            write_row(k, start, k_cache, k_scales, row, lane)
        else:
            write_row(v, start, v_cache, v_scales, row, lane)

    return kernel(write, fastmath=False)


class Blocks(Protocol):
    """What a KVCache is for copying: arrays [num_layers, num_blocks, ...], each contiguous, in pairs for K and V."""

    @property
    def arrays(self) -> Sequence[Array]: ...


def copy_blocks(source: Blocks, destination: Blocks, copies: Sequence[BlockCopy], stream: int | None = None) -> None:
    """`minipage.attention.copy_blocks` on the GPU: whole blocks, K and V, in all layers at once.

    Within one cache, or from one to another, of which one may be in pinned memory (`pinned`). All sources are read
    before any destination is written. stream: the handle of a CUDA stream; default: the current one of the library that
    made the cache on the GPU.
    """
    if not copies:
        return
    if stream is None:
        stream = max(stream_of(cache.arrays[0]) for cache in (source, destination))
    sources, destinations = zip(*copies, strict=True)
    places = range(len(copies))
    if source is destination and set(sources) & set(destinations):  # blocks are read and written: in two steps
        shelf = _Shelf([empty(a, (a.shape[0], len(copies), *a.shape[2:]), a.dtype) for a in source.arrays])
        _launch_copy(source.arrays, shelf.arrays, list(zip(sources, places)), stream)
        _launch_copy(shelf.arrays, destination.arrays, list(zip(places, destinations)), stream)
    else:
        _launch_copy(source.arrays, destination.arrays, list(copies), stream)


class _Shelf:
    def __init__(self, arrays: list[Array]) -> None:
        self.arrays = arrays


def _launch_copy(old: Sequence[Array], new: Sequence[Array], copies: Sequence[tuple[int, int]], stream: int) -> None:
    on = external_stream(stream)
    pairs = upload(np.array(copies, np.int32).reshape(-1), on)  # [2 * num_copies]
    for i in range(0, len(old), 2):  # K and V; then their scales
        where = layout(old[i])
        num_words = where.dtype.itemsize * int(np.prod(where.shape[2:])) // 4
        is_wide = num_words % 4 == 0 and all(layout(a).address % 16 == 0 for a in (*old[i : i + 2], *new[i : i + 2]))
        copy_kernel(is_wide)[(len(copies), where.shape[0], 2), COPY_THREADS, on](
            words(old[i]), words(old[i + 1]), words(new[i]), words(new[i + 1]),
            pairs, num_words, where.shape[1], layout(new[i]).shape[1],
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
