"""The model runner with its arrays on a GPU, PyTorch's or CuPy's, and any attention function.

Every argument is checked, so a step waits for the GPU many times. The runner of graphs.py does not, and leans on this
one, which runs the same model on CuPy, and attention functions of your own.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from array_api_compat import is_torch_namespace

import minipage.attention.cuda as kernels
from minipage.attention import KVCache
from minipage.attention.cuda.device_arrays import to_host
from minipage.errors import ConfigurationError, require_positive
from minipage.memory import BlockPool, blocks_needed
from minipage.model.architecture import Model
from minipage.model.place import is_simulated
from minipage.scheduling import StepPlan
from minipage.worker.batch import Batch, Kernels, PagedAttention, attend_with
from minipage.worker.gpu.memory import spare_memory
from minipage.worker.gpu.views import for_kernels, from_kernels, zeros
from minipage.worker.runner import Limits, ModelRunner


class GPURunner(ModelRunner):
    """A ModelRunner whose model, blocks and kernels are on a GPU; swapped blocks are in memory that the GPU can reach.

    Args:
        limits: the largest batch that will come.
        gpu_memory_utilization: the share of the GPU's memory that may be used, by everything together.
        paged_attention: takes arrays on the GPU; see minipage/attention/cuda/launch.py.
    """

    def __init__(
        self,
        model: Model,
        kv_dtype: type,
        limits: Limits,
        gpu_memory_utilization: float,
        paged_attention: PagedAttention = kernels.paged_attention,
    ) -> None:
        super().__init__(model, kv_dtype, paged_attention)
        require_positive(**limits._asdict())
        self.limits = limits
        self.gpu_memory_utilization = gpu_memory_utilization
        self.xp = model.layers.xp
        self.device = model.layers.device

    def blocks_that_fit(self, memory: int | str | None, block_size: int, name: str = "memory") -> int:
        """Without `memory`: as many as the GPU has room for, up to twice what the longest sequences could fill."""
        if memory is not None or is_simulated():
            return super().blocks_that_fit(memory, block_size, name)
        library = "torch" if is_torch_namespace(self.xp) else "cupy"
        spare = spare_memory(library, self.gpu_memory_utilization, self._largest_step)
        fit = super().blocks_that_fit(spare, block_size)
        longest = blocks_needed(self.limits.max_model_len, block_size) * len(self.kv_groups.parts)
        return min(fit, 2 * self.limits.max_num_seqs * longest)

    def _largest_step(self) -> int:
        """Run the largest step, except for attention; see spare_memory."""
        xp, device = self.xp, self.device
        dummy_ids = xp.zeros(self.limits.max_num_batched_tokens, dtype=xp.int64, device=device)  # [T]
        rows = xp.zeros(self.limits.max_num_seqs, dtype=xp.int64, device=device)  # [num_seqs]
        hidden = self.model.forward(dummy_ids, dummy_ids, lambda layer, q, k, v: q + 0)  # [T, C]
        logits = self.model.logits(xp.take(hidden, rows, axis=0))  # [num_seqs, vocab_size]
        xp.astype(logits, xp.float32)  # [num_seqs, vocab_size]
        return 0

    def allocate(self, block_pool: BlockPool, swap_pool: BlockPool | None) -> None:
        on_gpu = partial(zeros, self.xp, self.device)
        try:
            self.kv_cache = KVCache.of(block_pool, self.kv_groups.num_layers, *self._kv_sizes, on_gpu)
        except (MemoryError, RuntimeError) as error:  # CuPy's, and PyTorch's
            if "out of memory" not in str(error).lower():
                raise
            raise ConfigurationError(
                f"the GPU has no room for {block_pool.num_blocks:,} blocks of {block_pool.block_size} tokens. "
                f"Lower num_blocks or memory. ({error})"
            ) from error
        sizes = self.kv_groups.num_layers, *self._kv_sizes
        self.swap_cache = KVCache.of(swap_pool, *sizes, kernels.pinned) if swap_pool else None

    def copy(self, plan: StepPlan) -> None:
        if self.swap_cache:
            kernels.copy_blocks(self.kv_cache, self.swap_cache, plan.swap_out)
            kernels.copy_blocks(self.swap_cache, self.kv_cache, plan.swap_in)
        kernels.copy_blocks(self.kv_cache, self.kv_cache, plan.copies)

    def compute(self, made: list[Batch]) -> np.ndarray:
        batches = [Batch._make(map(self.model.layers.asarray, batch)) for batch in made]
        batch = batches[0]
        ours = Kernels(kernels.write_kv, self.paged_attention, for_kernels, from_kernels)
        seen = [Batch._make(map(for_kernels, batch)) for batch in batches]
        attend = attend_with(ours, seen, self.kv_cache.at_place, self.kv_groups)
        hidden = self.model.forward(batch.token_ids, batch.positions, attend)  # [T, C]
        logits = self.model.logits(self.xp.take(hidden, batch.sampled_rows, axis=0))  # [num_sampled, vocab_size]
        return np.asarray(to_host(self.xp.astype(logits, self.xp.float32)))  # [num_sampled, vocab_size]
