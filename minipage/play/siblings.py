"""Another engine for a model that is there already: so other options cost no loading."""

from __future__ import annotations

from copy import copy
from typing import Any

from minipage.engine.build import SchedulerOptions, make_scheduler
from minipage.engine.engine import Engine
from minipage.engine.intake import Intake
from minipage.engine.llm import DEFAULTS, LLM
from minipage.errors import ConfigurationError
from minipage.worker.runner import ModelRunner


def sibling(llm: LLM, **options: Any) -> LLM:
    """An engine with the weights, the kernel and the parts of `llm`, and a pool and a scheduler of its own.

    Raises ConfigurationError if an option makes no sense, or the engine is not on a CPU.
    """
    if type(llm.runner) is not ModelRunner:  # graphs are captured for one pool
        raise ConfigurationError("to play takes an engine on the CPU; leave out device.")
    runner = copy(llm.runner)
    names = SchedulerOptions._fields
    chosen = {name: options.get(name, DEFAULTS[name]) for name in names}
    scheduler = make_scheduler(runner, SchedulerOptions(**chosen), type(llm.scheduler))
    twin = LLM.__new__(LLM)
    twin.config, twin.tokenizer, twin.eos_token_ids = llm.config, llm.tokenizer, llm.eos_token_ids
    twin.max_model_len = llm.max_model_len
    sizes = llm.config.vocab_size, llm.eos_token_ids, llm.max_model_len
    intake = Intake(llm.tokenizer, *sizes, scheduler.block_pool, llm._intake.block_table)
    Engine.__init__(twin, runner, scheduler, intake)
    return twin
