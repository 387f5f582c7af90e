"""Paged attention: the KV cache arrays and the kernels that read them through block tables.

Everything here takes plain arrays and works without an engine: `paged_attention(q, k_cache, v_cache, block_tables,
context_lens, query_start_loc, scale)`, described in `arguments.py`, comes as `reference` (NumPy), `loops`
(plain loops, which numba compiles) and `cpu` (numba with vectors, which the engine uses).
"""

from minipage.attention.cache_size import blocks_that_fit
from minipage.attention.cpu import paged_attention
from minipage.attention.kv_cache import KVCache, copy_blocks, write_kv
from minipage.renamed import keep_old_names

__all__ = ["KVCache", "blocks_that_fit", "copy_blocks", "paged_attention", "write_kv"]

keep_old_names(__name__)
