"""Another engine for a model that is there already: so other options cost no loading."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

from minipage.engine.build import find, make_block_pool, make_swap_pool
from minipage.engine.engine import Engine
from minipage.engine.llm import DEFAULTS, LLM
from minipage.engine.partial_hits import copy_what_is_found, prefix_cache_for
from minipage.engine.stats import Stats
from minipage.engine.windows import kinds_of_sequences
from minipage.errors import ConfigurationError
from minipage.scheduling import POLICIES, Scheduler
from minipage.scheduling.admission import FirstChunkScheduler, scheduler_for
from minipage.worker.runner import ModelRunner


def sibling(llm: LLM, **options: Any) -> LLM:
    """An engine with the weights, the kernel and the parts of `llm`, and a pool and a scheduler of its own.

    Raises ConfigurationError if an option makes no sense, or the engine is not on a CPU.
    """
    if type(llm.runner) is not ModelRunner:  # graphs are captured for one pool
        raise ConfigurationError("to play takes an engine on the CPU; leave out device.")
    chosen = {**DEFAULTS, **options}
    runner = copy(llm.runner)
    pool = make_block_pool(runner, chosen["block_size"], chosen["num_blocks"], None)
    preemption, swap_pool = make_swap_pool(runner, pool.block_size, chosen["preemption"], chosen["swap_space"])
    own = type(llm.scheduler)
    make = scheduler_for(None if own in (Scheduler, FirstChunkScheduler) else own, chosen["scheduler_reserve_full_isl"])
    scheduler = make(
        pool,
        chosen["max_num_seqs"],
        chosen["max_num_batched_tokens"],
        policy=find(chosen["policy"], POLICIES, "policy"),
        prefix_cache=prefix_cache_for(
            pool, runner.groups, chosen["enable_prefix_caching"], chosen["prefix_match_unit"]
        ),
        swap_pool=swap_pool,
        preemption=preemption,
        watermark=chosen["watermark"],
    )
    table, group = kinds_of_sequences(runner.groups, llm._intake.block_table, scheduler.max_num_batched_tokens)
    twin = LLM.__new__(LLM)
    twin.config, twin.tokenizer, twin.eos_token_ids = llm.config, llm.tokenizer, llm.eos_token_ids
    twin.max_model_len = llm.max_model_len
    intake = replace(llm._intake, block_pool=pool, block_table=table, sequence_group=group)
    Engine.__init__(twin, runner, scheduler, intake, Stats(llm.max_model_len))
    copy_what_is_found(twin)
    return twin
