"""Another engine for a model that is there already: so other options cost no loading."""

from __future__ import annotations

from copy import copy
from typing import Any

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError
from minipage.memory import BlockTable
from minipage.memory.kv_groups import GroupTables
from minipage.scheduling import Scheduler
from minipage.scheduling.first_chunk import FirstChunkScheduler
from minipage.worker.runner import ModelRunner


class Sibling(LLM):
    """An engine with the weights, the kernel and the parts of `llm`, and a pool and a scheduler of its own.

    Raises ConfigurationError if an option makes no sense, or the engine is not on a CPU.
    """

    def __init__(self, llm: LLM, **options: Any) -> None:
        if type(llm.runner) is not ModelRunner:  # graphs are captured for one pool
            raise ConfigurationError("to play takes an engine on the CPU; leave out device.")
        self.model_of = llm
        table, scheduler = llm._intake.block_table, type(llm.scheduler)
        # What minipage chooses by the model and the options, it chooses again.
        super().__init__(
            block_table=BlockTable if issubclass(table, GroupTables) else table,
            scheduler=None if scheduler in (Scheduler, FirstChunkScheduler) else scheduler,
            **options,
        )

    def _load(self, *_: Any) -> tuple[ModelRunner, Any]:
        llm = self.model_of
        self.config, self.tokenizer, self.eos_token_ids = llm.config, llm.tokenizer, llm.eos_token_ids
        self.max_model_len = llm.max_model_len
        return copy(llm.runner), {}
