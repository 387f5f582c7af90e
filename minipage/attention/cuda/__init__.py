"""Paged attention on NVIDIA GPUs, in numba.cuda.

`paged_attention` and `write_kv` are those of `minipage.attention` for arrays on the GPU; `launch_...` are what they
launch, for an engine that knows its arrays are right and captures its steps in CUDA graphs. Read in this order:

    numbers.py   what q, K and V are made of
    tiles.py     how a batch is cut into pieces of work; merge.py: how what they find is joined
    wide.py      the kernel for all numbers, on ordinary cores; tensor.py: that for two bytes or one, on tensor cores
    cache.py     writing and copying K and V; swap.py: in a stream of its own
    launch.py    which kernel, and how many blocks of it
    ptx.py       single instructions that numba has no name for; compat.py and arrays.py: numba, and other libraries
"""

from minipage.attention.cuda.arrays import pinned, view
from minipage.attention.cuda.cache import copy_blocks, launch_write_kv, write_kv
from minipage.attention.cuda.launch import launch_attention, paged_attention, workspace_size
from minipage.attention.cuda.swap import SideStream

__all__ = [
    "SideStream", "copy_blocks", "launch_attention", "launch_write_kv", "paged_attention", "pinned", "view",
    "workspace_size", "write_kv",
]  # fmt: skip
