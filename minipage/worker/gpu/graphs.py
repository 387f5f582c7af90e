"""The fast runner, for PyTorch: a decode step is one copy of its inputs and one launch of a CUDA graph.

A small model's layer is a dozen kernels of a few microseconds each, less than the host needs to launch them one by one.
A CUDA graph is a recording of all the launches of a step, replayed by one call:

    batch of 5 decodes ─▶ padded to 8 ─▶ inputs copied to where the graph of 8 reads them ─▶ replay ─▶ 5 rows of logits

A graph is captured when the first batch of its size comes along; there is one for contexts of up to 512 tokens, and one
for longer ones. In other steps the kernels are launched one by one, and so they are where a capture fails. Either way
the host waits for the GPU only when it needs the tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import numpy as np
import torch

import minipage.attention.cuda as kernels
from minipage.attention.cuda.launch import SHORT
from minipage.errors import ConfigurationError, require_positive
from minipage.memory import BlockPool, blocks_needed
from minipage.model.gpt import GPT, Array, Attend
from minipage.sampling import Draw, SamplingParams
from minipage.scheduling import StepPlan
from minipage.worker.batch import Batch
from minipage.worker.gpu.capture import capture
from minipage.worker.gpu.draw import sample_on_device
from minipage.worker.gpu.inputs import StepInputs
from minipage.worker.gpu.next_batch import Batches
from minipage.worker.gpu.runner import GPURunner
from minipage.worker.gpu.views import for_kernels, view_for_kernels
from minipage.worker.runner import Limits


class GraphRunner(GPURunner):
    """Runs a GPT of PyTorch on a GPU.

    Args:
        limits: the largest batch that will come.
        gpu_memory_utilization: the share of the GPU's memory that may be used, by everything together.
        enforce_eager: no graphs; all kernels are launched one by one.
    """

    def __init__(
        self, model: GPT, kv_dtype: type, limits: Limits, gpu_memory_utilization: float, enforce_eager: bool
    ) -> None:
        super().__init__(model, kv_dtype)
        require_positive(**limits._asdict())
        self.limits = limits
        self.gpu_memory_utilization = gpu_memory_utilization
        self.is_on_gpu = self.somewhere.device.type == "cuda"  # otherwise kernels are simulated
        self.enforce_eager = enforce_eager or not self.is_on_gpu
        self._sizes = graph_sizes(limits.max_num_seqs)
        self._lengths = graph_lengths(limits.max_model_len)
        # By size and length of context; each with the logits [size, vocab_size] that it writes.
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._failures = 0  # captures that failed
        self._steps_to_wait = 0  # until another one is tried
        self._pool = torch.cuda.graph_pool_handle() if self.is_on_gpu else None  # memory that all graphs share

    def blocks_that_fit(self, memory: int | str | None, block_size: int, name: str = "memory") -> int:
        """Without `memory`: as many as the GPU has room for, up to twice what the longest sequences could fill."""
        if memory is not None or not self.is_on_gpu:
            return super().blocks_that_fit(memory, block_size, name)
        there_is_room_for = super().blocks_that_fit(self._spare_memory(), block_size)
        return min(
            there_is_room_for, 2 * self.limits.max_num_seqs * blocks_needed(self.limits.max_model_len, block_size)
        )

    @torch.inference_mode()
    def _spare_memory(self) -> int:
        """Bytes that are left for K and V, when the largest step and the graphs have taken what they need."""
        device = self.somewhere.device
        _, num_tokens, num_seqs = self.limits
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        some = torch.zeros(num_tokens, dtype=torch.int32, device=device)  # [num_tokens]
        hidden = self.model.forward(some, some, lambda layer, q, k, v: q.contiguous())  # [num_tokens, n_embd]
        logits = self.model.logits(hidden[:1].expand(num_seqs, -1))  # [num_seqs, vocab_size]
        nearly_all = Draw(SamplingParams(top_p=1 - 1e-9), 0.5)  # so many that the whole vocabulary is sorted
        self.sample(logits, [(row, nearly_all) for row in range(num_seqs)])
        needed = torch.cuda.max_memory_allocated() - before
        if not self.enforce_eager:  # each graph keeps its logits
            needed += len(self._lengths) * sum(self._sizes) * logits.stride(0) * logits.element_size()
        del hidden, logits
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        spare = int(self.gpu_memory_utilization * total) - (total - free) - needed
        if spare <= 0:
            raise ConfigurationError(
                f"gpu_memory_utilization is {self.gpu_memory_utilization!r} of {total:,} bytes, of which "
                f"{total - free:,} are in use and a step needs {needed:,}: nothing is left for K and V. Raise it, stop "
                "other programs on this GPU, or lower max_num_seqs and max_num_batched_tokens."
            )
        return spare

    def allocate(self, block_pool: BlockPool, swap_pool: BlockPool | None) -> None:
        super().allocate(block_pool, swap_pool)
        max_len, max_num_tokens, _ = self.limits
        config, device = self.model.config, self.somewhere.device
        max_blocks = blocks_needed(max_len, block_pool.block_size)
        self._inputs = StepInputs(max(max_num_tokens, self._sizes[-1]), self._sizes[-1], max_blocks, device)
        self._batches = Batches(block_pool.block_size)
        size = kernels.workspace_size(self._sizes[-1], config.n_head, config.head_size, max_len)
        self._workspace = torch.zeros(size, device=device)  # [size] float32
        # Each layer's part of the caches: k, v, and the scales of a quantized cache.
        self._layers = [[kernels.view(array[i]) for array in self.kv_cache.arrays] for i in range(config.n_layer)]

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> torch.Tensor:  # type: ignore[override]
        """[num_sampled, vocab_size] logits, on the GPU, in the dtype of the model; until the next step."""
        batch = self._batches.make(plan.chunks)
        num_tokens, num_seqs, num_sampled = len(batch.token_ids), len(batch.context_lens), len(batch.sampled_rows)
        longest = int(batch.context_lens.max())
        if num_tokens == num_seqs == num_sampled:
            size, length = first_at_least(num_seqs, self._sizes), first_at_least(longest, self._lengths)
            logits = self._decode(size, length, self._inputs.load(batch, size, size))  # [size, vocab_size]
        else:
            query_lens = np.diff(batch.query_start_loc)  # [num_seqs]
            inputs = self._inputs.load(batch, num_tokens, num_seqs)
            # [num_seqs or more, vocab_size]
            logits = self._run(inputs, int(query_lens.min()), int(query_lens.max()), longest)
        return logits[:num_sampled]  # [num_sampled, vocab_size]

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, draws: Sequence[tuple[int, Draw]]) -> list[int]:  # type: ignore[override]
        return sample_on_device(logits, draws) if draws else []

    def rows(self, logits: torch.Tensor, rows: Collection[int]) -> dict[int, np.ndarray]:  # type: ignore[override]
        if not rows:
            return {}
        return dict(zip(rows, logits[list(rows)].float().cpu().numpy()))

    # ---- running the model

    def _decode(self, size: int, length: int, inputs: Batch) -> torch.Tensor:
        """[size, vocab_size] logits of `size` sequences with one token each, of which some may be padding."""
        if self.enforce_eager:
            return self._run(inputs, 1, 1, length)
        if (size, length) not in self._graphs:
            # This compiles and loads what a graph cannot hold; what it writes is written again.
            launched = self._run(inputs, 1, 1, length)  # [size, vocab_size]
            if not self._capture(size, length, inputs):
                return launched
        graph, logits = self._graphs[size, length]
        graph.replay()
        return logits

    def _capture(self, size: int, length: int, inputs: Batch) -> bool:
        """Whether there is a graph now. After a failure the next steps do without, twice as many each time."""
        if self._steps_to_wait > 0:
            self._steps_to_wait -= 1
            return False
        try:
            self._graphs[size, length] = capture(lambda: self._run(inputs, 1, 1, length), self._pool)
        except Exception as error:  # PyTorch's, numba's, or CUDA's own
            if self._failures == 0:
                warnings.warn(
                    f"a CUDA graph for {size} sequences could not be captured, so kernels are launched one by one, "
                    f"which is slower; it will be tried again. ({type(error).__name__}: {error})",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._failures += 1
            self._steps_to_wait = 2 ** min(self._failures, 10)
            return False
        return True

    def _run(self, inputs: Batch, min_query_len: int, max_query_len: int, max_context_len: int) -> torch.Tensor:
        """[num_seqs, vocab_size] logits, in the first rows those that are wanted."""
        attend = self._launches(inputs, min_query_len, max_query_len, max_context_len)
        hidden = self.model.forward(inputs.token_ids, inputs.positions, attend)  # [T, n_embd]
        logits: torch.Tensor = self.model.logits(hidden.index_select(0, inputs.sampled_rows))  # [num_seqs, vocab_size]
        return logits

    def _launches(self, inputs: Batch, min_query_len: int, max_query_len: int, max_context_len: int) -> Attend:
        """Attention with nothing checked and nothing waited for."""
        stream = torch.cuda.current_stream().cuda_stream if self.is_on_gpu else 0
        slots, tables, contexts, starts, workspace = map(view_for_kernels, (*inputs[2:6], self._workspace))

        def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
            out, scale = torch.empty(q.shape, dtype=q.dtype, device=q.device), q.shape[-1] ** -0.5  # [T, H, D]
            q, k, v = map(view_for_kernels, (q, k, v))  # each [T, H, D], rows of one array
            k_cache, v_cache, *scales = self._layers[layer]
            kernels.launch_write_kv(k, v, k_cache, v_cache, slots, *scales, stream=stream)
            kernels.launch_attention(
                q, k_cache, v_cache, tables, contexts, starts, scale, *scales, out=for_kernels(out),
                workspace=workspace, min_query_len=min_query_len, max_query_len=max_query_len,
                max_context_len=max_context_len, stream=stream,
            )  # fmt: skip
            return out

        return attend


def first_at_least(number: int, choices: Sequence[int]) -> int:
    """Of choices in ascending order."""
    return next(choice for choice in choices if choice >= number)


def graph_sizes(max_num_seqs: int) -> list[int]:
    """The batch sizes that graphs are captured for, so close that padding costs little."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs, 32)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def graph_lengths(max_model_len: int) -> list[int]:
    """The lengths of context that graphs are captured for: short ones are not cut into parts, longer ones may be."""
    return [SHORT, max_model_len] if SHORT < max_model_len else [max_model_len]
