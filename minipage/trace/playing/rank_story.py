"""A story that takes two processes: `minipage demo ranks`. Not among the others, because it needs PyTorch, and time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from minipage.trace.playing.cues import newly_used, step_is
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.playing.story_texts import JULIET, RICHARD
from minipage.trace.recording.trace import Trace

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

STEP = 3  # after which the ranks are asked for their halves of a block
LAYER = 0


class Halves:
    """Asks each rank, once, what it keeps of a block."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    @contextmanager
    def around_step(self, trace: Trace) -> Iterator[None]:
        yield
        frame = trace[-1]
        if frame.step == STEP and frame.sequences and frame.sequences[0].blocks:
            trace.stories[STEP] = self.tell(frame.sequences[0].blocks[0])

    def tell(self, block: int) -> str:
        """What each rank has of the first token in a block."""
        runner: Any = self.llm.runner  # that of several ranks
        parts, first = [], 0
        for rank, (k, _) in enumerate(runner.ask("block", layer=LAYER, block=block)):
            last = first + len(k[0]) - 1
            parts.append(f"rank {rank} keeps heads {first} to {last} (the first number of its K: {k[0][0][0]:.2f})")
            first = last + 1
        return f"Block {block} is the same block for both, but of its first token {', and '.join(parts)}."


RANKS = Scenario(
    "ranks",
    "Two ranks, one block table",
    "two processes have half of the heads each; blocks and tables are for both",
    (Arrival(0, RICHARD, 12), Arrival(1, JULIET, 10)),
    (
        Turn(
            step_is(1),
            "Two processes compute this: rank 0, where the scheduler is, and rank 1. Each has half of the heads, and "
            "rank 0 tells rank 1 each step: these tokens, these slots, these block tables.",
        ),
        Turn(newly_used, "A new block is one for both: rank 1 learns its number with the step's block tables."),
        Turn(
            lambda f: f.finished,
            "Done. Rank 0 frees the blocks, and rank 1 need not even be told: it never knew whose they were.",
        ),
    ),
    {"tensor_parallel_size": 2},
    room=1.5,
    beside=Halves,
)
