"""How much of a GPU's memory is left for K and V.

    weights, other programs │ a step │ graphs │ K and V          │ 1 - gpu_memory_utilization
    in use already            needed            what is left       nobody's

What a step needs is found by running the largest one once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from minipage.errors import ConfigurationError


def spare_memory(library: str, gpu_memory_utilization: float, largest_step: Callable[[], int]) -> int:
    """Bytes that are left for K and V on the GPU that a library uses: "torch" or "cupy".

    largest_step: runs the largest step that may come, and returns how many bytes are needed besides, for good.

    Raises ConfigurationError if nothing is left.
    """
    needed = memory_of(library, largest_step)
    free, total = free_and_total(library)
    in_use = total - free
    spare = int(gpu_memory_utilization * total) - in_use - needed
    if spare <= 0:
        raise ConfigurationError(
            f"gpu_memory_utilization is {gpu_memory_utilization!r} of {total:,} bytes, of which {in_use:,} are in use "
            f"and a step needs {needed:,}: nothing is left for K and V. Raise it, stop other programs on this GPU, or "
            "lower max_num_seqs and max_num_batched_tokens."
        )
    return spare


def memory_of(library: str, step: Callable[[], int]) -> int:
    """The most bytes that are in use during a step, besides what was in use before, and those that it asks for."""
    if library == "torch":
        memory: Any = sys.modules["torch"].cuda
        memory.synchronize()
        memory.reset_peak_memory_stats()
        before = memory.memory_allocated()
        kept = step()
        most = memory.max_memory_allocated()
        memory.empty_cache()
    else:  # CuPy's pool keeps what it once had, until it is told otherwise
        pool: Any = sys.modules["cupy"].get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        kept = step()
        most = pool.total_bytes()
        pool.free_all_blocks()
    return int(most - before + kept)


def free_and_total(library: str) -> tuple[int, int]:
    """Bytes of the GPU's memory, whoever uses it."""
    if library == "torch":
        free, total = sys.modules["torch"].cuda.mem_get_info()
    else:
        free, total = sys.modules["cupy"].cuda.runtime.memGetInfo()
    return int(free), int(total)
