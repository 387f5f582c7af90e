"""The engine's kernels in the form of a rung: a decode step, one query for each sequence."""

from __future__ import annotations

from typing import Any

import numpy as np

from minipage.attention.cuda.arrays import device_of, empty, layout, library, to_device
from minipage.attention.cuda.launch import launch_attention, workspace_size


def decode_with(choose, q, k_cache, v_cache, block_tables, context_lens, scale, out, stream=0):
    num_seqs, num_heads, head_size = layout(q).shape
    max_context_len = layout(block_tables).shape[1] * layout(k_cache).shape[1]
    size = workspace_size(num_seqs, num_heads, head_size, max_context_len)
    launch_attention(
        q, k_cache, v_cache, block_tables, context_lens, starts_of(q), scale,
        out=out, workspace=empty(q, (size,), "float32"), max_query_len=1, max_context_len=max_context_len,
        stream=stream, choose=choose,
    )  # fmt: skip


# Made once for each number of sequences: while a CUDA graph is being captured, nothing can be brought to the GPU.
STARTS: dict[tuple[str, str, int], Any] = {}


def starts_of(q):
    """query_start_loc of one query each, [num_seqs + 1]."""
    key = library(q), device_of(q), len(q)
    if key not in STARTS:
        STARTS[key] = to_device(q, np.arange(len(q) + 1, dtype=np.int32))
    return STARTS[key]
