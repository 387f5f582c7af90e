"""The arrays behind the block numbers, and the two ways to write them.

A slot is a place for the K and V of one token in every layer: slot = block * block_size + offset. All of one layer's K
in one block is contiguous memory, and a block table is all it takes to find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from minipage.attention.arguments import FLOATS, NARROW, QUANTIZED, as_array, as_integers, check_copies, check_scales
from minipage.attention.quantize import quantize
from minipage.errors import require
from minipage.memory import BlockCopy, BlockPool
from minipage.simd.arrays import Floats, Integers
from minipage.simd.halves import stored


class KVCache:
    """K and V of all layers, each [num_layers, num_blocks, block_size, num_kv_heads, head_size].

    Of dtype float32, float16, or uint16 for the bits of bfloat16; with int8, or uint8 for fp8, also their scales,
    [num_layers, num_blocks, block_size, num_kv_heads] float32.
    All start as zeros, which an operating system hands out page by page as they are first written. `zeros` makes an
    array of a shape and dtype, on a GPU for example.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        dtype: np.dtype | type = np.float32,
        zeros: Callable[[tuple[int, ...], Any], Floats] = np.zeros,
    ) -> None:
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_size)
        self.k = zeros(shape, dtype)  # [num_layers, num_blocks, block_size, num_kv_heads, head_size]
        self.v = zeros(shape, dtype)  # [num_layers, num_blocks, block_size, num_kv_heads, head_size]
        self.k_scales: Floats | None = None
        self.v_scales: Floats | None = None
        if dtype in (np.int8, np.uint8):
            self.k_scales = zeros(shape[:-1], np.float32)  # [num_layers, num_blocks, block_size, num_kv_heads]
            self.v_scales = zeros(shape[:-1], np.float32)  # [num_layers, num_blocks, block_size, num_kv_heads]

    @property
    def arrays(self) -> list[Floats]:
        """All that is stored of blocks; each array is [num_layers, num_blocks, ...]."""
        return [a for a in (self.k, self.v, self.k_scales, self.v_scales) if a is not None]

    def at_place(self, place: int) -> list[Floats]:
        """K, V, and if the cache is quantized their scales, of the layers that have this place in their KV cache group.

        Each array is [num_blocks, ...]. If all layers share one block table, a layer's place is its number.
        """
        return [array[place] for array in self.arrays]

    @classmethod
    def of(cls, pool: BlockPool, num_layers: int, num_kv_heads: int, head_size: int, *how: Any) -> KVCache:
        """The arrays for the blocks of a pool; how: their dtype, and `zeros`."""
        return cls(num_layers, pool.num_blocks, pool.block_size, num_kv_heads, head_size, *how)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def write_kv(
    k: Floats,
    v: Floats,
    k_cache: Floats,
    v_cache: Floats,
    slot_mapping: Integers,
    k_scales: Floats | None = None,
    v_scales: Floats | None = None,
) -> None:
    """Write the K and V of new tokens into their slots, in one layer; into a quantized cache, with their scales.

    k, v: [num_tokens, num_kv_heads, head_size], numbers, or bits of bfloat16 for a cache of these; k_cache, v_cache:
    [num_blocks, block_size, num_kv_heads, head_size], C-contiguous; slot_mapping: [num_tokens] integers; k_scales,
    v_scales: [num_blocks, block_size, num_kv_heads] float32. Of tokens with the same slot, the last one stays there.
    Raises KernelArgumentError if the arrays do not fit together; nothing was written then.
    """
    slots = as_integers("slot_mapping", slot_mapping)  # [num_tokens]
    k, v = as_array("k", k), as_array("v", v)
    check_cache(k_cache, v_cache, k_scales, v_scales)
    require(
        slots.ndim == 1
        and k.shape == v.shape == (*slots.shape, *k_cache.shape[2:])
        and (k.dtype.kind == v.dtype.kind == "f" or k.dtype == v.dtype == k_cache.dtype == np.uint16),
        lambda: (
            f"cannot write K of shape {k.shape} and {k.dtype}, and V of {v.shape} and {v.dtype}, to slots of shape "
            f"{slots.shape} in a cache of shape {k_cache.shape}: floats [num_tokens, num_kv_heads, head_size] and a "
            "slot for each token are needed."
        ),
    )
    num_blocks, block_size = k_cache.shape[:2]
    require(
        len(slots) == 0 or (slots.min() >= 0 and slots.max() < num_blocks * block_size),
        lambda: f"slot_mapping points outside the cache, which has slots 0 to {num_blocks * block_size - 1}.",
    )
    where = slots // block_size, slots % block_size  # (block, offset), each [num_tokens]
    for new, cache, scales in ((k, k_cache, k_scales), (v, v_cache, v_scales)):
        if scales is None:
            cache[where] = new if new.dtype == cache.dtype else stored(new, cache.dtype)
        else:
            cache[where], scales[where] = quantize(new, cache.dtype)


def check_cache(k_cache: Floats, v_cache: Floats, k_scales: Floats | None, v_scales: Floats | None) -> None:
    """Raise KernelArgumentError unless K and V can be written to these arrays, in place."""
    for array in (k_cache, v_cache, *(scales for scales in (k_scales, v_scales) if scales is not None)):
        require(
            isinstance(array, np.ndarray) and array.flags.writeable,
            "the caches and their scales are written in place, so they must be NumPy arrays, and not read-only.",
        )
    require(
        k_cache.ndim == 4 and k_cache.shape == v_cache.shape and k_cache.dtype == v_cache.dtype,
        lambda: (
            f"k_cache is {k_cache.shape} of {k_cache.dtype} and v_cache {v_cache.shape} of {v_cache.dtype}; both must "
            "be [num_blocks, block_size, num_kv_heads, head_size], of one dtype."
        ),
    )
    require(
        k_cache.dtype in FLOATS or k_cache.dtype in NARROW,
        lambda: f"a cache is float32, float64, float16, uint16 (bfloat16), int8 or uint8 (fp8), not {k_cache.dtype}.",
    )
    require(
        k_cache.flags.c_contiguous and v_cache.flags.c_contiguous,
        lambda: f"the caches, of shape {k_cache.shape}, must be C-contiguous, so that a block is one piece of memory.",
    )
    check_scales(k_cache.dtype in QUANTIZED, k_cache.shape, k_scales, v_scales)


def copy_blocks(source: KVCache, destination: KVCache, copies: Sequence[BlockCopy]) -> None:
    """Copy whole blocks, K and V, in every layer at once: within one cache, or from one to another.

    All sources are read before any destination is written; of copies to the same block, the last one counts. Raises
    KernelArgumentError if a block does not exist or the caches hold different numbers; nothing was copied then.
    """
    is_many = isinstance(copies, Iterable) and not hasattr(copies, "ndim")  # an array is taken as it is
    pairs = as_integers("copies", list(copies) if is_many else copies)  # [num_copies, 2]
    if pairs.size == 0:
        return
    check_copies(pairs, source.arrays, destination.arrays)
    for array in destination.arrays:
        require(array.flags.writeable, "the cache that is copied to is read-only.")
    sources, destinations = pairs.T  # [num_copies] each
    for old, new in zip(source.arrays, destination.arrays):
        new[:, destinations] = old[:, sources]
