"""From the options of an engine to the parts that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from minipage.attention import cpu, loops, reference
from minipage.attention.quantize import kv_dtype
from minipage.errors import ConfigurationError, require_positive, shown
from minipage.memory import BlockPool, PrefixCache
from minipage.model.architecture import Architecture
from minipage.model.layers.sharded import Talk
from minipage.model.place import Progress, place_model
from minipage.model.stored_weights import Weights
from minipage.sampling import is_whole
from minipage.scheduling import POLICIES, Policy, Preemption, Scheduler
from minipage.worker.batch import PagedAttention
from minipage.worker.runner import Limits, ModelRunner

ATTENTION = {"cpu": cpu.paged_attention, "loops": loops.paged_attention, "reference": reference.paged_attention}


def check_settings(
    seed: Any, num_blocks: object, memory: object, enable_prefix_caching: object, enforce_eager: object
) -> None:
    """Raise ConfigurationError for what no part would notice."""
    if not (seed is None or (is_whole(seed) and seed >= 0)):
        raise ConfigurationError(f"seed is {shown(seed)}; it must be None or a whole number of at least 0.")
    if num_blocks is not None and memory is not None:
        raise ConfigurationError(f"num_blocks is {shown(num_blocks)} and memory {shown(memory)}: give one of the two.")
    for name, switch in (("enable_prefix_caching", enable_prefix_caching), ("enforce_eager", enforce_eager)):
        if not isinstance(switch, bool | np.bool):
            raise ConfigurationError(f"{name} is {shown(switch)}; it must be True or False.")


class SchedulerOptions(NamedTuple):
    """The options of LLM that a scheduler is made from."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_pool: BlockPool | None
    block_size: int
    num_blocks: int | None
    memory: int | str | None
    enable_prefix_caching: bool
    preemption: Preemption
    swap_space: int | str
    policy: str | Policy
    watermark: float


def refuse_overridden(options: SchedulerOptions, scheduler: Scheduler | None, defaults: Mapping[str, Any]) -> None:
    """Raise ConfigurationError if a scheduler or a pool that is ready comes together with options it makes void."""
    part, void = "scheduler", [name for name, value in options._asdict().items() if value != defaults[name]]
    if scheduler is None:
        part, void = "block_pool", [name for name in void if name in ("block_size", "num_blocks", "memory")]
    if void and not (scheduler is None and options.block_pool is None):
        raise ConfigurationError(
            f"{', '.join(void)} would have no effect, because the {part} that is handed in has settings of its own. "
            f"Leave out one or the other."
        )


def context_len(max_model_len: int | None, longest: int) -> int:
    """`max_model_len`, or without one the model's context. Raises ConfigurationError if it is no such length."""
    if max_model_len is None:
        return longest
    if not (is_whole(max_model_len) and 2 <= max_model_len <= longest):
        raise ConfigurationError(
            f"max_model_len is {max_model_len!r}; it must be from 2 to the model's context, {longest}."
        )
    return max_model_len


def make_runner(
    architecture: Architecture,
    weights: Weights,
    limits: Limits,
    *,
    device: str,
    arrays: str | None,
    dtype: str,
    kv_cache_dtype: str,
    attention: str | PagedAttention | None,
    gpu_memory_utilization: float,
    enforce_eager: bool,
    progress: Progress | None,
    talk: Talk | None = None,
) -> ModelRunner:
    """The model on its device, and what runs it there; for the arguments see LLM.

    talk: with other ranks, each of which has a part of the model; see ranks.py.
    """
    arrays = arrays or ("numpy" if device == "cpu" else "torch")
    model = place_model(architecture, weights, arrays, dtype, device, progress, talk)
    kept_as = kv_dtype(dtype if kv_cache_dtype == "auto" else kv_cache_dtype)
    if device == "cpu":
        return ModelRunner(model, kept_as, find(attention, ATTENTION, "attention"))
    from minipage.worker.gpu import gpu_runner  # what a CPU does not need is not even loaded

    return gpu_runner(model, kept_as, attention, limits, gpu_memory_utilization, enforce_eager)


def check_ranks(tensor_parallel_size: int) -> None:
    """Raise ConfigurationError unless there is a way for ranks to talk."""
    require_positive(tensor_parallel_size=tensor_parallel_size)
    try:
        import torch.distributed
    except ImportError:
        raise ConfigurationError(
            "tensor_parallel_size needs PyTorch, through which ranks talk: pip install minipage[torch]."
        ) from None
    if not torch.distributed.is_available():
        raise ConfigurationError("tensor_parallel_size needs a PyTorch with torch.distributed, which this one lacks.")


def make_scheduler(
    runner: ModelRunner, options: SchedulerOptions, scheduler: Callable[..., Scheduler] = Scheduler
) -> Scheduler:
    """A scheduler with its pools; how many blocks a memory holds, the runner knows."""
    block_pool, block_size, preemption = options.block_pool, options.block_size, options.preemption
    if block_pool is None:
        num_blocks = options.num_blocks
        room = runner.blocks_that_fit(options.memory, block_size) if num_blocks is None else num_blocks
        block_pool = make_pool(room, block_size, "num_blocks")
    if preemption in ("swap", "auto") and options.swap_space in (0, "0"):
        preemption = "recompute"
    swap_pool = None
    if preemption != "recompute":
        swap_space = "256MiB" if options.swap_space is None else options.swap_space
        num_swap_blocks = runner.blocks_that_fit(swap_space, block_pool.block_size, "swap_space")
        swap_pool = make_pool(num_swap_blocks, block_pool.block_size, "swap_space")
    return scheduler(
        block_pool,
        options.max_num_seqs,
        options.max_num_batched_tokens,
        policy=find(options.policy, POLICIES, "policy"),
        prefix_cache=PrefixCache(block_pool) if options.enable_prefix_caching else None,
        swap_pool=swap_pool,
        preemption=preemption,
        watermark=options.watermark,
    )


def make_pool(num_blocks: int, block_size: int, name: str) -> BlockPool:
    try:
        return BlockPool(num_blocks, block_size)
    except (MemoryError, OverflowError) as error:  # the pool's own lists; K and V take much more
        raise ConfigurationError(f"{name} asks for {num_blocks:.3g} blocks, which no memory can hold.") from error


def find(choice: str | Callable[..., Any] | None, named: dict[str, Any], what: str) -> Any:
    """A function handed in, or the one of that name, or the first of those that have one."""
    if choice is None:
        return next(iter(named.values()))
    if callable(choice):
        return choice
    if choice == "cuda":
        raise ConfigurationError(f"{what} is 'cuda', which needs an NVIDIA GPU and device='cuda'.")
    if not isinstance(choice, str) or choice not in named:
        raise ConfigurationError(f"{what} is {shown(choice)}; it must be a function or one of {', '.join(named)}.")
    return named[choice]
