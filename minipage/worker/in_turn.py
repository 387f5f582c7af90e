"""Launching a step on a runner that computes in the host's own thread: it is computed when its tokens are waited for.

So nothing is gained, and everything can be tried out: what overlaps on a GPU (worker/gpu/ahead.py) happens here in the
same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from minipage.sampling import Draw
from minipage.scheduling import StepPlan
from minipage.worker.runner import ModelRunner

Tokens: TypeAlias = list[int | None]  # one for each draw; None: the device alone could not tell
# Start a step's copies, its chunks and its draws; what is returned waits for the tokens. In token_ids, ~i stands for
# the i-th draw of the launch before.
Launch: TypeAlias = Callable[[StepPlan, list[tuple[int, Draw]]], Callable[[], Tokens]]


class InTurn:
    """Launches steps on a runner that launches none itself."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self._drawn = np.zeros(0, np.int64)  # [num_draws], by the step before

    def launch(self, plan: StepPlan, draws: list[tuple[int, Draw]]) -> Callable[[], Tokens]:
        batches = self.runner.batches(plan) if plan.chunks else []

        def wait() -> Tokens:
            self.runner.copy(plan)
            if not batches:
                return []
            token_ids = batches[0].token_ids  # [T]
            unknown = token_ids < 0  # [T]
            token_ids[unknown] = np.maximum(self._drawn[~token_ids[unknown]], 0)  # where none was drawn, any will do
            tokens = self.runner.sample(self.runner.compute(batches), draws)
            self._drawn = np.array(tokens, np.int64)  # [num_draws]
            return list(tokens)

        return wait


def may_overlap(runner: ModelRunner) -> bool:
    """Whether a launched step is all that the runner does: not in a `forward` of its own, nor in ranks on CPUs."""
    if not runner.is_alone:
        return hasattr(runner, "launch")
    return getattr(runner.forward, "__func__", None) is ModelRunner.forward
