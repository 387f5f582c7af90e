"""From the options of an engine to the parts that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import numpy as np

from minipage.attention import cpu, loops, reference
from minipage.attention.cache_size import read_bytes
from minipage.attention.quantize import kv_dtype
from minipage.engine.option_kinds import check_kinds, is_same
from minipage.errors import ConfigurationError, shown
from minipage.memory import BlockPool
from minipage.memory.eviction import Eviction, lru
from minipage.model.architecture import Architecture, Model
from minipage.model.layers.sharded import Talk
from minipage.model.place import Progress, place_model
from minipage.model.stored_weights import Weights
from minipage.sampling import is_whole
from minipage.scheduling import Preemption
from minipage.worker.batch import PagedAttention
from minipage.worker.runner import Limits, ModelRunner

DEFAULT_SWAP_SPACE = "256MiB"
ATTENTION = {"cpu": cpu.paged_attention, "loops": loops.paged_attention, "reference": reference.paged_attention}


SCHEDULER_OPTIONS = (  # what a scheduler is made from
    "max_num_seqs", "max_num_batched_tokens", "block_pool", "block_size", "num_blocks", "memory",
    "enable_prefix_caching", "prefix_match_unit", "eviction", "preemption", "swap_space", "policy", "watermark",
    "scheduler_reserve_full_isl",
)  # fmt: skip
POOL_OPTIONS = "block_size", "num_blocks", "memory", "eviction"
BYTES_OF_A_BLOCK = 128  # at least, in the lists of a pool


def check_options(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for options of LLM that no part would refuse: a wrong value, or one that has no effect.

    given: all of them, by name.
    """
    check_kinds(given, defaults)
    seed, num_blocks, memory = given["seed"], given["num_blocks"], given["memory"]
    if not (seed is None or (is_whole(seed) and seed >= 0)):
        raise ConfigurationError(f"seed is {shown(seed)}; it must be None or a whole number of at least 0.")
    if num_blocks is not None and memory is not None:
        raise ConfigurationError(f"num_blocks is {shown(num_blocks)} and memory {shown(memory)}: give one of the two.")
    if given["scheduler"] is not None and not callable(given["scheduler"]):
        refuse_overridden("scheduler", SCHEDULER_OPTIONS, given, defaults)
    elif given["block_pool"] is not None:
        refuse_overridden("block_pool", POOL_OPTIONS, given, defaults)


def refuse_overridden(part: str, options: Iterable[str], given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ConfigurationError if a part that is ready comes together with options that it makes void."""
    if void := [name for name in options if not is_same(given[name], defaults[name])]:
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
            f"max_model_len is {shown(max_model_len)}; it must be from 2 to the model's context, {longest}."
        )
    return max_model_len


def make_runner(
    model: Model,
    kv_dtype: type,
    attention: str | PagedAttention | None,
    limits: Limits,
    device: str,
    gpu_memory_utilization: float,
    enforce_eager: bool,
) -> ModelRunner:
    """What runs a model on its device; for the arguments see LLM."""
    if device == "cpu":
        return ModelRunner(model, kv_dtype, find(attention, ATTENTION, "attention"))
    from minipage.worker.gpu import gpu_runner  # what a CPU does not need is not even loaded

    return gpu_runner(model, kv_dtype, attention, limits, gpu_memory_utilization, enforce_eager)


def load_runner(
    architecture: Architecture,
    weights: Weights,
    limits: Limits,
    progress: Progress | None = None,
    talk: Talk | None = None,
    *,
    arrays: str | None,
    dtype: str,
    quantization: str | None,
    kv_cache_dtype: str,
    device: str,
    **how: Any,
) -> ModelRunner:
    """A model on its device, and what runs it there; for the arguments see LLM.

    talk: with other ranks, each of which has a part of the model; see ranks.py.
    """
    arrays = arrays or ("numpy" if device == "cpu" else "torch")
    model = place_model(architecture, weights, arrays, dtype, device, progress, quantization, talk)
    kept_as = kv_dtype(dtype if kv_cache_dtype == "auto" else kv_cache_dtype)
    return make_runner(model, kept_as, limits=limits, device=device, **how)


def make_block_pool(
    runner: ModelRunner,
    block_size: int,
    num_blocks: int | None,
    memory: int | str | None,
    option: str = "memory",
    eviction: Eviction = lru,
) -> BlockPool:
    """A pool of `num_blocks`, or of as many as `memory`, which is called `option`, has room for."""
    if num_blocks is None:
        num_blocks = runner.blocks_that_fit(memory, block_size, option)
    try:
        if is_whole(num_blocks) and num_blocks > 0:  # more than there is should be refused at once, not when it is full
            np.empty(min(num_blocks * BYTES_OF_A_BLOCK, 2**62), np.uint8)
        return BlockPool(num_blocks, block_size, eviction)
    except (MemoryError, OverflowError) as error:  # the pool's own lists; K and V take much more
        asking = "num_blocks" if option == "memory" else option
        raise ConfigurationError(f"{asking} asks for {shown(num_blocks)} blocks, which no memory can hold.") from error


def make_swap_pool(
    runner: ModelRunner, block_size: int, preemption: Preemption, swap_space: int | str | None
) -> tuple[Preemption, BlockPool | None]:
    """How groups are preempted, and the pool that their blocks are saved in: without swap space there is none."""
    given = DEFAULT_SWAP_SPACE if swap_space is None else swap_space
    num_bytes = read_bytes(given, "swap_space")  # what makes no sense is refused, also where nothing swaps
    if preemption == "recompute" or (preemption in get_args(Preemption) and num_bytes == 0):
        return "recompute", None
    return preemption, make_block_pool(runner, block_size, None, num_bytes, "swap_space")


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
