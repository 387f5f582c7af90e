"""The model runner with its arrays on a GPU: PyTorch's or CuPy's, and any attention function.

Everything is checked and nothing is hidden, so a step waits for the GPU many times. The path that does not is in
graphs.py; this one runs the same model on CuPy, and attention functions of your own.
"""

from __future__ import annotations

from functools import partial

import numpy as np

import minipage.attention.cuda as kernels
from minipage.attention import KVCache
from minipage.attention.cuda.arrays import to_host
from minipage.errors import ConfigurationError
from minipage.memory import BlockPool
from minipage.model.architecture import Array, Attend, Model
from minipage.scheduling import StepPlan
from minipage.worker.batch import Batch, PagedAttention, check_mixed, make_batch
from minipage.worker.gpu.views import for_kernels, from_kernels, zeros
from minipage.worker.runner import ModelRunner


class GPURunner(ModelRunner):
    """A ModelRunner whose model, blocks and kernels are on a GPU; swapped blocks are in memory that the GPU can reach.

    Args:
        paged_attention: takes arrays on the GPU; see minipage/attention/cuda/launch.py.
    """

    def __init__(self, model: Model, kv_dtype: type, paged_attention: PagedAttention = kernels.paged_attention) -> None:
        super().__init__(model, kv_dtype, paged_attention)
        self.xp = model.layers.xp
        self.device = model.layers.device

    def allocate(self, block_pool: BlockPool, swap_pool: BlockPool | None) -> None:
        on_gpu = partial(zeros, self.xp, self.device)
        try:
            self.kv_cache = KVCache.of(block_pool, *self._kv_sizes, on_gpu)
        except (MemoryError, RuntimeError) as error:  # CuPy's, and PyTorch's
            if "out of memory" not in str(error).lower():
                raise
            raise ConfigurationError(
                f"the GPU has no room for {block_pool.num_blocks:,} blocks of {block_pool.block_size} tokens. "
                f"Lower num_blocks or memory. ({error})"
            ) from error
        self.swap_cache = KVCache.of(swap_pool, *self._kv_sizes, kernels.pinned) if swap_pool else None

    def copy(self, plan: StepPlan) -> None:
        if self.swap_cache:
            kernels.copy_blocks(self.kv_cache, self.swap_cache, plan.swap_out)
            kernels.copy_blocks(self.swap_cache, self.kv_cache, plan.swap_in)
        kernels.copy_blocks(self.kv_cache, self.kv_cache, plan.copies)

    def forward(self, plan: StepPlan) -> np.ndarray:
        batch = Batch(*map(self.model.layers.asarray, make_batch(plan.chunks)))
        hidden = self.model.forward(batch.token_ids, batch.positions, self._attend(batch))  # [T, C]
        logits = self.model.logits(self.xp.take(hidden, batch.sampled_rows, axis=0))  # [num_sampled, vocab_size]
        return np.asarray(to_host(self.xp.astype(logits, self.xp.float32)))  # [num_sampled, vocab_size]

    def _attend(self, batch: Batch) -> Attend:
        slots, *tables = map(for_kernels, batch[2:6])

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            k_cache, v_cache, *scales = (array[layer] for array in self.kv_cache.arrays)
            like, (q, k, v) = q, map(for_kernels, (q, k, v))  # each [T, H, D]
            kernels.write_kv(k, v, k_cache, v_cache, slots, *scales)
            out = self.paged_attention(q, k_cache, v_cache, *tables, q.shape[-1] ** -0.5, *scales)  # [T, H, D]
            check_mixed(out, q)
            return from_kernels(out, like)

        return attend
