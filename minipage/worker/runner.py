"""The model and the memory it works in: what the engine runs on a device.

    StepPlan ─▶ copy      blocks that are swapped, restored or copied on write
             ─▶ forward   the planned tokens through the model; K and V into their slots; logits out

The engine decides, the runner computes: nothing here knows of requests or of the order they are served in, and nothing
above this file touches K and V.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from minipage.attention import KVCache, blocks_that_fit, copy_blocks, write_kv
from minipage.attention.cache_size import DEFAULT_MEMORY
from minipage.errors import ConfigurationError
from minipage.memory import BlockPool
from minipage.memory.kv_groups import KVGroups
from minipage.model.architecture import Model
from minipage.sampling import Draw, sample_batch
from minipage.scheduling import StepPlan
from minipage.worker.batch import Batch, Kernels, PagedAttention, as_numpy, attend_with, like_q, make_batch


class Limits(NamedTuple):
    """How large a step may be."""

    max_model_len: int  # tokens of a sequence
    max_num_batched_tokens: int
    max_num_seqs: int


class ModelRunner:
    """Runs a model over what the scheduler plans.

    Args:
        model: with its weights.
        kv_dtype: what K and V are kept as; see minipage/attention/quantize.py.
        paged_attention: a kernel; see minipage/attention/arguments.py.
    """

    lost: str | None = None  # why it can compute no more
    is_alone = True  # no other process has a part of the model, or of K and V

    def __init__(self, model: Model, kv_dtype: type, paged_attention: PagedAttention) -> None:
        self.model = model
        self.paged_attention = paged_attention
        self.kv_groups = KVGroups.of(model.kv.num_layers, model.kv.windows)  # of layers that share a block table
        self._kv_sizes = model.kv.num_kv_heads, model.kv.head_size, kv_dtype

    def blocks_that_fit(self, memory: int | str | None, block_size: int, name: str = "memory") -> int:
        """How many blocks `memory` holds: a number of bytes, or a text such as "512MiB". Default: DEFAULT_MEMORY.

        Raises ConfigurationError if it makes no sense; `name` is what the option is called.
        """
        wanted = DEFAULT_MEMORY if memory is None else memory
        return blocks_that_fit(wanted, block_size, self.kv_groups.num_layers, *self._kv_sizes, name=name)

    def allocate(self, block_pool: BlockPool, swap_pool: BlockPool | None) -> None:
        """Make the arrays for the blocks of the two pools."""
        try:
            self.kv_cache = KVCache.of(block_pool, self.kv_groups.num_layers, *self._kv_sizes)
            self.swap_cache = KVCache.of(swap_pool, self.kv_groups.num_layers, *self._kv_sizes) if swap_pool else None
        except (MemoryError, ValueError) as error:  # more than there is, or than NumPy can count
            raise ConfigurationError(
                f"there is no room for {block_pool.num_blocks:,} blocks of {block_pool.block_size} tokens ({error}). "
                "Lower num_blocks, block_size, memory or swap_space."
            ) from error

    def check_alive(self) -> None:
        """Raise EngineDeadError if it can compute no more."""

    def copy(self, plan: StepPlan) -> None:
        """Move whole blocks before anything is written: save and restore what is swapped, and copy on write."""
        if self.swap_cache:
            copy_blocks(self.kv_cache, self.swap_cache, plan.swap_out)
            copy_blocks(self.swap_cache, self.kv_cache, plan.swap_in)
        copy_blocks(self.kv_cache, self.kv_cache, plan.copies)

    def forward(self, plan: StepPlan) -> np.ndarray:
        """Run the model; [num_sampled, vocab_size] logits: for each chunk, in their order, the `rows` that it needs."""
        return self.compute(self.batches(plan))

    def batches(self, plan: StepPlan) -> list[Batch]:
        """What is planned as flat arrays, for each group of layers with its block tables."""
        return [make_batch(plan.chunks, part) for part in self.kv_groups.parts]

    def compute(self, batches: list[Batch]) -> np.ndarray:
        """Run the model over what `batches` has made; [num_sampled, vocab_size] logits."""
        layers = self.model.layers
        token_ids, positions = map(layers.asarray, (batches[0].token_ids, batches[0].positions))  # [T] each
        kernels = Kernels(write_kv, self.paged_attention, as_numpy, like_q)
        attend = attend_with(kernels, batches, self.kv_cache.at_place, self.kv_groups)
        hidden = self.model.forward(token_ids, positions, attend)  # [T, C]
        sampled = layers.xp.take(hidden, layers.asarray(batches[0].sampled_rows), axis=0)  # [num_sampled, C]
        return as_numpy(self.model.logits(sampled))  # [num_sampled, vocab_size]

    def sample(self, logits: np.ndarray, draws: Sequence[tuple[int, Draw]]) -> list[int]:
        """A token for each draw, from the row of logits [num_sampled, vocab_size] that is named before it."""
        return sample_batch(logits, draws)

    def rows(self, logits: np.ndarray, rows: Collection[int]) -> dict[int, np.ndarray]:
        """Some rows of the logits in the memory of the host; each [vocab_size]."""
        return {row: logits[row] for row in rows}
