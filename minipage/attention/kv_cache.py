"""The arrays behind the block numbers, and the two ways to write them.

A slot is a place for the K and V of one token in every layer: slot = block * block_size + offset. All of one layer's K
in one block is contiguous memory, and a block table is all it takes to find it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from minipage.attention.arguments import Floats, Integers
from minipage.errors import ConfigurationError, KernelArgumentError, require_positive
from minipage.memory import BlockCopy, BlockPool


class KVCache:
    """K and V of all layers, each [num_layers, num_blocks, block_size, num_kv_heads, head_size].

    They start as zeros, which an operating system hands out page by page as they are first written.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_size: int,
        dtype: np.dtype | type = np.float32,
    ) -> None:
        shape = (num_layers, num_blocks, block_size, num_kv_heads, head_size)
        self.k = np.zeros(shape, dtype)  # [num_layers, num_blocks, block_size, num_kv_heads, head_size]
        self.v = np.zeros(shape, dtype)  # [num_layers, num_blocks, block_size, num_kv_heads, head_size]

    @classmethod
    def of(cls, pool: BlockPool, num_layers: int, num_kv_heads: int, head_size: int) -> KVCache:
        """The arrays for the blocks of a pool."""
        return cls(num_layers, pool.num_blocks, pool.block_size, num_kv_heads, head_size)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


def write_kv(k: Floats, v: Floats, k_cache: Floats, v_cache: Floats, slot_mapping: Integers) -> None:
    """Write the K and V of new tokens into their slots, in one layer.

    k, v: [num_tokens, num_kv_heads, head_size]; k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_size],
    C-contiguous; slot_mapping: [num_tokens] integers. Raises KernelArgumentError if they do not fit together.
    """
    for new, cache in ((k, k_cache), (v, v_cache)):
        if new.shape != (len(slot_mapping), *cache.shape[2:]) or not cache.flags.c_contiguous:
            raise KernelArgumentError(
                f"cannot write K or V of shape {new.shape} into {len(slot_mapping)} slots of a cache of shape "
                f"{cache.shape}: [num_tokens, num_kv_heads, head_size] and a C-contiguous cache are needed."
            )
    num_slots = k_cache.shape[0] * k_cache.shape[1]
    if len(slot_mapping) and not (0 <= slot_mapping.min() and slot_mapping.max() < num_slots):
        raise KernelArgumentError(f"slot_mapping points outside the cache, which has slots 0 to {num_slots - 1}.")
    for new, cache in ((k, k_cache), (v, v_cache)):
        slots = cache.reshape(num_slots, *cache.shape[2:])  # [num_slots, num_kv_heads, head_size], the same memory
        slots[slot_mapping] = new


def copy_blocks(source: KVCache, destination: KVCache, copies: Sequence[BlockCopy]) -> None:
    """Copy whole blocks, K and V, in every layer at once: within one cache, or from one to another.

    All sources are read before any destination is written.
    """
    if copies:
        sources, destinations = (list(blocks) for blocks in zip(*copies, strict=True))
        destination.k[:, destinations] = source.k[:, sources]
        destination.v[:, destinations] = source.v[:, sources]


def blocks_that_fit(memory: int | str, block_size: int, num_layers: int, num_kv_heads: int, head_size: int) -> int:
    """How many blocks of K and V, in all layers, `memory` holds: a number of bytes, or a text such as "512MiB".

    Raises ConfigurationError if `memory` or `block_size` makes no sense, or not one block fits.
    """
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", str(memory).lower())
    if not match or isinstance(memory, bool):
        raise ConfigurationError(f"memory is {memory!r}; it must be a number of bytes, or a text such as '512MiB'.")
    num_bytes = int(float(match[1]) * units[match[2] or ""])
    require_positive(block_size=block_size)
    bytes_per_block = KVCache(num_layers, 1, block_size, num_kv_heads, head_size).nbytes
    if num_bytes < bytes_per_block:
        raise ConfigurationError(
            f"memory is {memory!r}, too small for one block: {block_size} tokens take {bytes_per_block:,} bytes here. "
            "Give more memory, or a smaller block_size."
        )
    return num_bytes // bytes_per_block
