"""The engine's kernels in the form of a rung: a decode step, one query for each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipage.attention.cuda.device_arrays import device_of, layout, library, to_device
from minipage.attention.cuda.launch import launch_attention, workspace_size


def decode_with(choose, q, k_cache, v_cache, block_tables, context_lens, scale, out, stream=0):
    num_seqs, num_heads, head_size = layout(q).shape
    max_context_len = layout(block_tables).shape[1] * layout(k_cache).shape[1]
    size = workspace_size(num_seqs, num_heads, head_size, max_context_len)
    launch_attention(
        q, k_cache, v_cache, block_tables, context_lens, made_once(q, np.arange, num_seqs + 1, np.int32), scale,
        out=out, workspace=made_once(q, np.zeros, size, np.float32), max_query_len=1, max_context_len=max_context_len,
        stream=stream, choose=choose,
    )  # fmt: skip


MADE: dict[tuple[Any, ...], Any] = {}


def made_once(like, make, size, dtype):
    """make(size) on the GPU, for all launches: while a CUDA graph is captured, nothing can be brought there."""
    key = library(like), device_of(like), make, size
    if key not in MADE:
        MADE[key] = to_device(like, make(size, dtype=dtype))
    return MADE[key]
