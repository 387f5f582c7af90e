"""Another engine for a model that is there already: so other options cost no loading."""

from __future__ import annotations

from copy import copy
from typing import Any

from minipage.engine.build import find, make_block_pool, make_swap_pool
from minipage.engine.engine import Engine
from minipage.engine.intake import Intake
from minipage.engine.llm import DEFAULTS, LLM
from minipage.engine.stats import Stats
from minipage.engine.windows import kinds_of_sequences, make_prefix_cache
from minipage.errors import ConfigurationError
from minipage.scheduling import POLICIES
from minipage.worker.runner import ModelRunner

NAMES = (
    "block_size", "num_blocks", "memory", "max_num_seqs", "max_num_batched_tokens", "policy", "enable_prefix_caching",
    "preemption", "swap_space", "watermark",
)  # fmt: skip


def sibling(llm: LLM, **options: Any) -> LLM:
    """An engine with the weights, the kernel and the parts of `llm`, and a pool and a scheduler of its own.

    Raises ConfigurationError if an option makes no sense, or the engine is not on a CPU.
    """
    if type(llm.runner) is not ModelRunner:  # graphs are captured for one pool
        raise ConfigurationError("to play takes an engine on the CPU; leave out device.")
    runner = copy(llm.runner)
    chosen = {name: options.get(name, DEFAULTS[name]) for name in NAMES}
    block_pool = make_block_pool(runner, *(chosen.pop(name) for name in ("block_size", "num_blocks", "memory")))
    preemption, swap_pool = make_swap_pool(
        runner, block_pool.block_size, chosen.pop("preemption"), chosen.pop("swap_space")
    )
    scheduler = type(llm.scheduler)(
        block_pool,
        policy=find(chosen.pop("policy"), POLICIES, "policy"),
        prefix_cache=make_prefix_cache(block_pool, runner.groups) if chosen.pop("enable_prefix_caching") else None,
        swap_pool=swap_pool,
        preemption=preemption,
        **chosen,
    )
    twin = LLM.__new__(LLM)
    twin.config, twin.tokenizer, twin.eos_token_ids = llm.config, llm.tokenizer, llm.eos_token_ids
    twin.max_model_len = llm.max_model_len
    sizes = llm.config.vocab_size, llm.eos_token_ids, llm.max_model_len
    kinds = kinds_of_sequences(runner.groups, llm._intake.block_table, scheduler.max_num_batched_tokens)
    intake = Intake(llm.tokenizer, *sizes, block_pool, *kinds)
    Engine.__init__(twin, runner, scheduler, intake, Stats(llm.max_model_len))
    return twin
