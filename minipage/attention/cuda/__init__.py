"""Paged attention on NVIDIA GPUs, in numba.cuda.

`paged_attention` and `write_kv` are those of `minipage.attention` for arrays on the GPU; `launch_...` are what they
launch, for an engine that knows its arrays are right and captures its steps in CUDA graphs. Read in this order:

    kinds.py           the kinds of numbers that q, K and V are made of
    tiles.py           how a batch is cut into pieces of work
    merge.py           how the results of the pieces are joined
    ordinary_cores.py  the kernel for every kind of numbers and head size
    tensor_cores.py    a faster one, for numbers of two bytes or one and the usual head sizes
    warpgroups.py      a still faster one, for prompts, on Hopper
    wgmma.py           the tensor cores' instructions that it uses
    widening.py        K and V of one byte, made ready for them
    cache.py           writing K and V into their slots, and copying blocks
    launch.py          which kernel, and how many blocks of it
    ptx.py             single instructions that numba has no name for
    compat.py          numba.cuda on a device and in the simulator
    device_arrays.py   arrays of PyTorch, CuPy and numba, as kernels see them
"""

from minipage.attention.cuda.cache import copy_blocks, launch_write_kv, write_kv
from minipage.attention.cuda.device_arrays import pinned, view
from minipage.attention.cuda.launch import NewTokens, launch_attention, paged_attention, workspace_size

__all__ = [
    "NewTokens", "copy_blocks", "launch_attention", "launch_write_kv", "paged_attention", "pinned", "view",
    "workspace_size", "write_kv",
]  # fmt: skip
