"""The fast runner, for PyTorch: a step is one copy of its inputs and one launch of a CUDA graph.

A small model's layer is a dozen kernels of a few microseconds each, less than the host needs to launch them one by one.
A CUDA graph is a recording of all the launches of a step, replayed by one call:

    batch of 5 decodes ─▶ padded to 8 ─▶ inputs copied to where the graph of 8 reads them ─▶ replay ─▶ 5 rows of logits

A graph is captured when the first batch of its size comes along; there is one for contexts of up to 512 tokens, and one
for longer ones. Drafts (engine/speculation.py) are computed like further sequences with the same blocks, so steps with
drafts are decodes, too. Steps with prompts in them are padded to a few sizes, of tokens and of sequences. In larger
steps the kernels are launched one by one, and so they are where a capture fails. Either way the host waits for the GPU
only when it needs the tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import minipage.attention.cuda as kernels
from minipage.attention.cuda.device_arrays import View, empty
from minipage.attention.cuda.launch import FEW_SEQS, SHORT
from minipage.memory import BlockPool, blocks_needed
from minipage.model.architecture import Attend, Model
from minipage.model.layers.sharded import ShardedLayers
from minipage.model.layers.torch import TorchLayers
from minipage.sampling import Draw, SamplingParams
from minipage.scheduling import StepPlan
from minipage.worker.batch import Batch, Kernels, attend_with
from minipage.worker.gpu.ahead import Drawn, Tokens
from minipage.worker.gpu.capture import Graphs
from minipage.worker.gpu.checked import GPURunner
from minipage.worker.gpu.draw import draw_on_device, sample_on_device
from minipage.worker.gpu.draw_in_order import How, SettingsInPlace, draw_in_order, how_in_order
from minipage.worker.gpu.fused import FusedLayers
from minipage.worker.gpu.inputs import StepInputs, token_by_token
from minipage.worker.gpu.next_batch import Batches
from minipage.worker.gpu.peer_layers import PeerLayers
from minipage.worker.gpu.turned import Later, launch_turn_and_write
from minipage.worker.gpu.views import from_kernels, view_for_kernels
from minipage.worker.runner import Limits

FEW_TOKENS = 16  # there are graphs for this many decodes, however few sequences may run: one may have drafts
# To one of these numbers of tokens a step with prompts in it is padded. Beyond, the GPU takes as long as the host.
PROMPT_SIZES = 16, 64, 128, 256, 512


class GraphRunner(GPURunner):
    """Runs a model of PyTorch on a GPU.

    Args:
        limits, gpu_memory_utilization: as for GPURunner.
        enforce_eager: no graphs; all kernels are launched one by one.
    """

    cheap_rows = 64  # a step with this many tokens takes little longer than with one

    def __init__(
        self, model: Model, kv_dtype: type, limits: Limits, gpu_memory_utilization: float, enforce_eager: bool
    ) -> None:
        super().__init__(model, kv_dtype, limits, gpu_memory_utilization)
        self.is_on_gpu = self.device.type == "cuda"  # otherwise kernels are simulated
        self._later = Later()
        if self.is_on_gpu and isinstance(model.layers, TorchLayers):
            self.model = Model(model.architecture, FusedLayers(model.layers, self._later))
        elif (
            self.is_on_gpu and isinstance(model.layers, ShardedLayers) and isinstance(model.layers.layers, TorchLayers)
        ):
            fused, talk = FusedLayers(model.layers.layers, self._later), model.layers.talk
            of_peers: Any = PeerLayers if hasattr(talk, "peers") else ShardedLayers
            self.model = Model(model.architecture, of_peers(model.layers.shard, fused, talk))
        self.enforce_eager = enforce_eager or not self.is_on_gpu
        self._sizes = graph_sizes(max(limits.max_num_seqs, FEW_TOKENS))
        self._prompt_sizes = sorted({min(size, limits.max_num_batched_tokens) for size in PROMPT_SIZES})
        self._lengths = graph_lengths(limits.max_model_len)
        pool = torch.cuda.graph_pool_handle() if self.is_on_gpu else None  # memory that all graphs share
        # By number of sequences, length of context, and whether a sequence is apart, or, with prompts, the number of
        # tokens; each with the logits [num_seqs, vocab_size].
        self._graphs = Graphs(pool)
        self._key: tuple[Any, ...] | None = None  # of the graph that wrote the last logits
        self._rows_to_draw = 0  # for how many there is still memory in graphs of draws
        self._draw_graphs = Graphs(pool)  # and how these logits are drawn from; each with the tokens [size]
        if isinstance(model.layers, ShardedLayers):
            model.layers.talk.graphs = [self._graphs, self._draw_graphs]

    @property
    def num_graphs(self) -> int:
        return len(self._graphs) + len(self._draw_graphs)

    @torch.inference_mode()
    def _largest_step(self) -> int:
        """Run the largest step, except for attention; returns the bytes that the graphs keep."""
        dummy_ids = torch.zeros(self.limits.max_num_batched_tokens, dtype=torch.int32, device=self.device)  # [T]
        hidden = self.model.forward(dummy_ids, dummy_ids, lambda layer, q, k, v: q.contiguous())  # [T, C]
        logits = self.model.logits(hidden[:1].expand(self.limits.max_num_seqs, -1))  # [max_num_seqs, vocab_size]
        worst_case = Draw(SamplingParams(top_p=1 - 1e-9), 0.5)  # nearly all tokens, so that the vocabulary is sorted
        self.sample(logits, [(row, worst_case) for row in range(len(logits))])
        bytes_per_row: int = logits.stride(0) * logits.element_size()
        rows = sum(self._sizes) + sum(size for size in self._sizes if size <= FEW_SEQS)  # the latter in both ways
        rows += len(self._prompt_sizes) * (FEW_TOKENS + self._sizes[-1])
        kept = len(self._lengths) * rows * bytes_per_row
        return 0 if self.enforce_eager else kept + self._bytes_to_draw()

    def _bytes_to_draw(self) -> int:
        """For graphs of draws: what they write belongs to them, and at the worst to each of them apart."""
        return 0 if self.enforce_eager else int(torch.cuda.get_device_properties(self.device).total_memory) // 64

    def allocate(self, block_pool: BlockPool, swap_pool: BlockPool | None) -> None:
        super().allocate(block_pool, swap_pool)
        device = self.device
        max_len = self.limits.max_model_len
        max_num_seqs = self._sizes[-1]
        max_num_tokens = max(self.limits.max_num_batched_tokens, max_num_seqs)
        max_blocks = blocks_needed(max_len, block_pool.block_size)
        # Of each group of layers that share block tables; nearly always there is one.
        self._inputs = [StepInputs(max_num_tokens, max_num_seqs, max_blocks, device) for _ in self.kv_groups.parts]
        self._drawn = Drawn(max_num_seqs, device)
        self._settings = SettingsInPlace(max_num_seqs, device)
        row = 4 * 8 * self.model.architecture.vocab_size  # bytes: probabilities in float64, in about four arrays
        self._rows_to_draw = self._bytes_to_draw() // row
        self._draws: Sequence[tuple[int, Draw]] = ()  # the last ones
        self._how: How | None = None
        # The last logits that were waited for, if they are still there, and the likeliest token of each row.
        self._greedy: tuple[Callable[[], torch.Tensor | None], list[int]] = lambda: None, []
        self._batches = [Batches(block_pool.block_size, part) for part in self.kv_groups.parts]
        size = kernels.workspace_size(max_num_seqs, self.model.architecture.num_heads, self.model.kv.head_size, max_len)
        self._workspace = view_for_kernels(torch.zeros(size, device=device))  # [size] float32
        # Each layer's part of the caches: k, v, and the scales of a quantized cache.
        self._layers = [
            [kernels.view(array) for array in self.kv_cache.at_place(i)] for i in range(self.kv_groups.num_layers)
        ]

    def batches(self, plan: StepPlan) -> list[Batch]:
        return [each.make(plan.chunks) for each in self._batches]

    @torch.inference_mode()
    def compute(self, batches: list[Batch]) -> torch.Tensor:  # type: ignore[override]
        """[num_sampled, vocab_size] logits, on the GPU, in the dtype of the model; until the next step."""
        batch, self._key = batches[0], None
        num_tokens, num_sampled = len(batch.token_ids), len(batch.sampled_rows)
        longest = int(batch.context_lens.max())
        length = first_at_least(longest, self._lengths)
        if num_tokens == num_sampled <= self._sizes[-1]:
            logits = self._decodes(batches, length)  # [size, vocab_size]
        elif self._may_be_graph(num_tokens, num_sampled):
            logits = self._with_prompts(batches, length)  # [num_seqs or more, vocab_size]
        else:
            query_lens = np.diff(batch.query_start_loc)  # [num_seqs]
            inputs = self._load(batches, num_tokens, len(query_lens))
            rows = inputs[0].sampled_rows  # [num_seqs or more]
            # [num_seqs or more, vocab_size]
            logits = self._run(inputs, int(query_lens.min()), int(query_lens.max()), longest, rows)
        return logits[:num_sampled]  # [num_sampled, vocab_size]

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, draws: Sequence[tuple[int, Draw]]) -> list[int]:  # type: ignore[override]
        if any(draw.params.temperature > 0 or draw.adjustment for _, draw in draws):
            return sample_on_device(logits, draws)
        if draws and logits is not self._greedy[0]():  # all rows at once: those after drafts are asked for later
            self._greedy = weakref.ref(logits), self._likeliest(logits, draws[0][1])
        return [self._greedy[1][row] for row, _ in draws]

    def _likeliest(self, logits: torch.Tensor, draw: Draw) -> list[int]:
        """The likeliest token of each row, or NO_TOKEN; `draw` is greedy."""
        draws = [(row, draw) for row in range(len(logits))]
        key = self._graph_of(logits)
        tokens: list[int] = (self._draw(key, "greedy", draws) if key else draw_on_device(logits, draws)).tolist()
        return tokens

    def rows(self, logits: torch.Tensor, rows: Collection[int]) -> dict[int, np.ndarray]:  # type: ignore[override]
        if not rows:
            return {}
        return dict(zip(rows, logits[list(rows)].float().cpu().numpy()))

    @torch.inference_mode()
    def launch(
        self, plan: StepPlan, draws: Sequence[tuple[int, Draw]], batches: list[Batch] | None = None
    ) -> Callable[[], Tokens]:
        """Start a whole step; what is returned waits for its tokens. See engine/overlap.py.

        batches: those of the plan, if somebody has made them.
        """
        self.copy(plan)
        if not plan.chunks:
            return list
        batches = batches or self.batches(plan)
        self._key = None
        logits = self.compute(batches)  # [num_sampled, vocab_size]
        if not draws:
            return list
        if draws is not self._draws:  # greedy ones come again and again
            self._draws, self._how = draws, how_in_order(draws)
        key = self._graph_of(logits)
        if key is None or self._how is None:
            return self._drawn.keep(draw_on_device(logits, draws))
        return self._drawn.keep(self._draw(key, self._how, draws))

    def _graph_of(self, logits: torch.Tensor) -> tuple[Any, ...] | None:
        """The key of the graph that wrote them; others may have put logits of their own in their place."""
        key = self._key
        return key if key and logits.data_ptr() == self._graphs[key][1].data_ptr() else None

    def _draw(self, key: tuple[Any, ...], how: How, draws: Sequence[tuple[int, Draw]]) -> torch.Tensor:
        """[num_draws] tokens, one for each of the first rows of the logits of a graph, by another graph if there is
        memory for it."""
        logits = self._graphs[key][1]  # [size, vocab_size]
        if (*key, how) not in self._draw_graphs:
            if how != "greedy" and len(logits) > self._rows_to_draw:
                return draw_on_device(logits[: len(draws)], draws)  # [num_draws]
            self._rows_to_draw -= len(logits) * (how != "greedy")
        settings = self._settings.load(draws, len(logits), how)
        draw = partial(draw_in_order, logits, settings, how)
        return self._draw_graphs.replayed((*key, how), draw)[: len(draws)]  # [num_draws]

    # ---- running the model

    def _may_be_graph(self, num_tokens: int, num_sampled: int) -> bool:
        """With prompts in it. Whose prompt's log probabilities are wanted may have many rows."""
        is_small = num_tokens <= self._prompt_sizes[-1] and num_sampled <= self._sizes[-1]
        return is_small and not self.enforce_eager

    def _decodes(self, batches: list[Batch], length: int) -> torch.Tensor:
        """[size, vocab_size] logits of `size` sequences with one token each, of which some may be padding.

        If in truth some of these sequences are one, all K and V are written before any are read.
        """
        num_tokens, num_seqs = len(batches[0].token_ids), len(batches[0].context_lens)
        size = first_at_least(num_tokens, self._sizes)
        if num_tokens > num_seqs:
            batches = [token_by_token(each) for each in batches]
        is_apart = num_tokens > num_seqs and size <= FEW_SEQS  # of many, they are written before in any case
        inputs = self._load(batches, size, size, are_decodes=True)
        run = partial(self._run, inputs, 1, 1, length, is_apart=is_apart)
        return self._replayed((size, length, is_apart), run)  # [size, vocab_size]

    def _with_prompts(self, batches: list[Batch], length: int) -> torch.Tensor:
        """[seqs, vocab_size] logits of up to `seqs` sequences, some with several tokens; the rest is padding."""
        batch = batches[0]
        size = first_at_least(len(batch.token_ids), self._prompt_sizes)
        most = max(len(batch.context_lens), len(batch.sampled_rows))
        seqs = first_at_least(most, (FEW_TOKENS, self._sizes[-1]))
        inputs = self._load(batches, size, seqs)
        run = partial(self._run, inputs, 1, size, length, inputs[0].sampled_rows)
        return self._replayed((seqs, length, size), run)  # [seqs, vocab_size]

    def _replayed(self, key: tuple[Any, ...], run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `run` computes [rows, vocab_size], from its graph if there may be one."""
        logits = run() if self.enforce_eager else self._graphs.replayed(key, run)  # [rows, vocab_size]
        self._key = key if key in self._graphs else None
        return logits

    def _load(self, batches: Sequence[Batch], num_tokens: int, num_seqs: int, are_decodes: bool = False) -> list[Batch]:
        return [own.load(batch, num_tokens, num_seqs, are_decodes) for own, batch in zip(self._inputs, batches)]

    def _run(
        self, inputs: list[Batch], min_query_len: int, max_query_len: int, max_context_len: int, rows: Any = None,
        is_apart: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        """Logits of these rows [num_rows], or of all: [num_rows, vocab_size]."""
        attend = self._launches(inputs, min_query_len, max_query_len, max_context_len, is_apart)
        token_ids = self._drawn.put_into(inputs[0].token_ids)  # [T]
        if isinstance(self.model.layers, ShardedLayers):
            token_ids = self.model.layers.talk.from_leader(token_ids)  # [T]; only rank 0 draws
        # Of few decodes, attention writes K and V.
        with self._later.permitted(max_query_len == 1 and len(token_ids) > FEW_SEQS, self.kv_cache.k.dtype):
            hidden = self.model.forward(token_ids, inputs[0].positions, attend)  # [T, C]
        hidden = hidden if rows is None else hidden.index_select(0, rows)  # [num_rows, C]
        logits: torch.Tensor = self.model.logits(hidden)  # [num_rows, vocab_size]
        return logits

    def _launches(
        self, inputs: list[Batch], min_query_len: int, max_query_len: int, max_context_len: int, is_apart: bool
    ) -> Attend:
        """Attention with nothing waited for, as no array of the batch is looked at."""
        stream = torch.cuda.current_stream().cuda_stream if self.is_on_gpu else 0
        new: list[kernels.NewTokens | None] = []  # of one layer: usually attention writes them by the way

        def write(k: View, v: View, k_cache: View, v_cache: View, slot_mapping: View, *scales: View) -> None:
            if put_off := self._later.take():
                launch_turn_and_write(*put_off, k, v, k_cache, v_cache, slot_mapping, stream)
            elif is_apart:
                kernels.launch_write_kv(k, v, k_cache, v_cache, slot_mapping, *scales, stream=stream)
            new.append(None if is_apart or put_off else kernels.NewTokens(k, v, slot_mapping))

        def attention(q: View, *arguments: Any, window: int | None = None) -> Any:
            out = empty(q.array, q.array.shape, q.array.dtype)  # [T, H, D]
            kernels.launch_attention(
                q, *arguments, out=out, workspace=self._workspace, min_query_len=min_query_len,
                max_query_len=max_query_len, max_context_len=max_context_len, stream=stream, window=window,
                new=new.pop(),
            )  # fmt: skip
            return out

        ours = Kernels(write, attention, view_for_kernels, from_kernels)
        seen = [Batch._make(map(view_for_kernels, own)) for own in inputs]
        return attend_with(ours, seen, self._layers.__getitem__, self.kv_groups)


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
