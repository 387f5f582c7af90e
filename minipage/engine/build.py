"""From the options of an engine to the parts that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minipage.errors import ConfigurationError, shown
from minipage.memory import BlockPool, PrefixCache
from minipage.sampling import is_whole
from minipage.scheduling import POLICIES, Policy, Preemption, Scheduler
from minipage.worker.runner import ModelRunner


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


def make_scheduler(
    runner: ModelRunner,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    *,
    block_pool: BlockPool | None,
    block_size: int,
    num_blocks: int | None,
    memory: int | str | None,
    enable_prefix_caching: bool,
    preemption: Preemption,
    swap_space: int | str,
    policy: str | Policy,
    watermark: float,
) -> Scheduler:
    """A scheduler with its pools; how many blocks a memory holds, the runner knows."""
    if block_pool is None:
        room = runner.blocks_that_fit(memory, block_size) if num_blocks is None else num_blocks
        block_pool = make_pool(room, block_size, "num_blocks")
    if preemption in ("swap", "auto") and swap_space in (0, "0"):
        preemption = "recompute"
    swap_pool = None
    if preemption != "recompute":
        swap_space = "256MiB" if swap_space is None else swap_space
        num_swap_blocks = runner.blocks_that_fit(swap_space, block_pool.block_size, "swap_space")
        swap_pool = make_pool(num_swap_blocks, block_pool.block_size, "swap_space")
    return Scheduler(
        block_pool,
        max_num_seqs,
        max_num_batched_tokens,
        policy=find(policy, POLICIES, "policy"),
        prefix_cache=PrefixCache(block_pool) if enable_prefix_caching else None,
        swap_pool=swap_pool,
        preemption=preemption,
        watermark=watermark,
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
