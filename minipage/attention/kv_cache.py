"""The arrays behind the block numbers, and the two ways to write them.

A slot is a place for the K and V of one token in every layer: slot = block * block_size + offset. All of one layer's K
in one block is contiguous memory, and a block table is all it takes to find it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minipage.attention.arguments import Floats, Integers
from minipage.attention.halves import to_bfloat16
from minipage.attention.quantize import quantize
from minipage.errors import ConfigurationError, KernelArgumentError, require_positive
from minipage.memory import BlockCopy, BlockPool


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

    @classmethod
    def of(cls, pool: BlockPool, num_layers: int, num_kv_heads: int, head_size: int, *how: Any) -> KVCache:
        """The arrays for the blocks of a pool."""
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

    k, v: [num_tokens, num_kv_heads, head_size]; k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_size],
    C-contiguous; slot_mapping: [num_tokens] integers; k_scales, v_scales: [num_blocks, block_size, num_kv_heads]
    float32. Raises KernelArgumentError if they do not fit together.
    """
    for new, cache in ((k, k_cache), (v, v_cache)):
        if new.shape != (len(slot_mapping), *cache.shape[2:]) or not cache.flags.c_contiguous:
            raise KernelArgumentError(
                f"cannot write K or V of shape {new.shape} into {len(slot_mapping)} slots of a cache of shape "
                f"{cache.shape}: [num_tokens, num_kv_heads, head_size] and a C-contiguous cache are needed."
            )
    num_blocks, block_size = k_cache.shape[:2]
    if len(slot_mapping) and not (0 <= slot_mapping.min() and slot_mapping.max() < num_blocks * block_size):
        raise KernelArgumentError(
            f"slot_mapping points outside the cache, which has slots 0 to {num_blocks * block_size - 1}."
        )
    where = slot_mapping // block_size, slot_mapping % block_size  # (block, offset), each [num_tokens]
    for new, cache, scales in ((k, k_cache, k_scales), (v, v_cache, v_scales)):
        if scales is None:
            cache[where] = to_bfloat16(new) if cache.dtype == np.uint16 else new
        else:
            cache[where], scales[where] = quantize(new, cache.dtype)


def copy_blocks(source: KVCache, destination: KVCache, copies: Sequence[BlockCopy]) -> None:
    """Copy whole blocks, K and V, in every layer at once: within one cache, or from one to another.

    All sources are read before any destination is written.
    """
    if copies:
        sources, destinations = (list(blocks) for blocks in zip(*copies, strict=True))
        for old, new in zip(source.arrays, destination.arrays, strict=True):
            new[:, destinations] = old[:, sources]


def blocks_that_fit(
    memory: int | str,
    block_size: int,
    num_layers: int,
    num_kv_heads: int,
    head_size: int,
    dtype: type = np.float32,
    name: str = "memory",
) -> int:
    """How many blocks of K and V, in all layers, `memory` holds: a number of bytes, or a text such as "512MiB".

    Raises ConfigurationError if `memory` (an option called `name`) or `block_size` makes no sense, or no block fits.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?\s*", str(memory).lower())
    if not match or isinstance(memory, bool):
        raise ConfigurationError(f"{name} is {memory!r}; it must be a number of bytes, or a text such as '512MiB'.")
    power = " kmgt".index(match[2] or " ")
    num_bytes = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    require_positive(block_size=block_size)
    bytes_per_block = KVCache(num_layers, 1, block_size, num_kv_heads, head_size, dtype).nbytes
    if num_bytes < bytes_per_block:
        raise ConfigurationError(
            f"{name} is {memory!r}, too small for one block: {block_size} tokens take {bytes_per_block:,} bytes here. "
            "Give more memory, or a smaller block_size."
        )
    return num_bytes // bytes_per_block
