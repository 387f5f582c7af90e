"""The ladder: one kernel, paged attention of a decode step, six times over, each rung a little nearer to the hardware.

    rung       what it changes                                 what that should gain
    1 thread   one thread for each query head                  nothing yet: it is right, and can be read
    2 warp     32 lanes share a head, side by side in memory   whole sectors of memory are used, not 2 bytes each
    3 block    four warps share a context; online softmax      K is read once, not twice; more loads under way
    4 split    blocks share a context; a second pass joins     few long contexts fill the chip
    5 wide     16 bytes a load; a group's heads share them     fewer instructions a byte; K and V once a group
    6 tensor   tensor cores do the arithmetic                  next to none is left on the ordinary cores

The last two are the engine's own (minipage/attention/cuda). A decode step reads every K and V of its batch once and
does little with them, so its floor is their bytes over the bandwidth of the memory, and every rung is judged by how
near it comes. docs/gpu.md has what was predicted for each, and what was measured; `python -m benchmarks.gpu` measures.

Every rung is `decode(q, k_cache, v_cache, block_tables, context_lens, scale, out, stream=0)`:

    q, out           [num_seqs, num_heads, head_size]   one new token of each sequence; float32, float16 or bfloat16
    k_cache, v_cache [num_blocks, block_size, num_kv_heads, head_size]   alike
    block_tables     [num_seqs, max_blocks]   int32
    context_lens     [num_seqs]   int32, at least 1
    stream           the handle of a CUDA stream

with contiguous arrays on the GPU, or NumPy arrays in the simulator (see simulator.py). Nothing is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

RUNGS = {
    "1 thread": "rung1_thread",
    "2 warp": "rung2_warp",
    "3 block": "rung3_block",
    "4 split": "rung4_split",
    "5 wide": "rung5_wide",
    "6 tensor": "rung6_tensor",
}


def rung(name: str) -> Callable[..., None]:
    """The `decode` of a rung, by its name in RUNGS; what it is made of is compiled at its first call."""
    decode: Callable[..., None] = import_module(f"minipage.ladder.{RUNGS[name]}").decode
    return decode
