"""The story of disaggregated prefill: another engine computes a prompt, and its block table travels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from minipage.engine.engine import Engine
from minipage.engine.handover import hand_over, take_over
from minipage.engine.stats import Stats
from minipage.errors import ConfigurationError, count
from minipage.memory import BlockPool
from minipage.scheduling import Scheduler
from minipage.trace.playing.cues import step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import FRIENDS, RICHARD
from minipage.trace.recording.trace import Trace
from minipage.worker.runner import ModelRunner

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

SECOND = "B"  # whose prompt is computed elsewhere


class Elsewhere:
    """Another engine of the same model, which computes one prompt for this one."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.is_done = False

    @contextmanager
    def around_step(self, trace: Trace) -> Iterator[None]:
        if SECOND in self.llm.requests and not self.is_done and type(self.llm.runner) is ModelRunner:
            self.is_done = True
            trace.stories[trace[-1].step + 1 if len(trace) else 1] = self.move(
                self.llm.requests[SECOND].prompt_token_ids
            )
        yield

    def move(self, prompt: list[int]) -> str:
        """Let a prompt be computed elsewhere, and take over; what to say of it."""
        pool = BlockPool(self.llm.block_pool.num_blocks, self.llm.block_pool.block_size)
        intake = replace(self.llm._intake, block_pool=pool)
        other = Engine(copy(self.llm.runner), Scheduler(pool), intake, Stats(self.llm.max_model_len))
        try:
            handover = hand_over(other, {"prompt_token_ids": prompt})
        except ConfigurationError as error:
            return str(error)
        num_taken = take_over(self.llm, handover)
        handover.discard()
        return (
            f"Another engine has computed the {count(len(prompt), 'token')} of {SECOND}, meanwhile and elsewhere. Its "
            f"block table travels, with {count(num_taken, 'block')} ({handover.num_bytes:,} bytes), which get other "
            "numbers here."
        )


HAND_OVER = Scenario(
    "hand-over",
    "A table travels",
    "one engine computes a prompt, another goes on: what moves is a block table and its blocks",
    (Arrival(0, RICHARD, 14), Arrival(3, FRIENDS + "All:\nSpeak", 8, {"temperature": 0})),
    (
        Turn(step_is(1), "A long prompt would make everybody wait who is here. So this engine will compute none of B."),
        Turn(
            lambda f: any("in the prefix cache" in event for event in f.events),
            "B finds its prompt as if it had been computed here. Only its last tokens are, because their logits are "
            "wanted.",
            "B's prompt was computed here after all: it is shorter than a block, or the engine is not on a CPU.",
        ),
        Turn(lambda f: f.finished, "It says what it would have said where it came from, token by token."),
    ),
    {"enable_prefix_caching": True},
    beside=Elsewhere,
)
