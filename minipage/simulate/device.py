"""A device that computes nothing, and takes its time: to see on any computer what a host has to do between two steps.

    host     plan and launch, wait, hand out tokens       the real engine's work, on the real clock
    device   busy for `seconds` after each launch         beside the host, as a GPU is

All tokens are the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minipage.engine.engine import Engine
from minipage.engine.overlap import Overlap
from minipage.scheduling import StepPlan

TOKEN = 1


class PretendDevice:
    """Takes the place of what an engine's runner computes.

    Args:
        seconds: that it takes for each step.
        overlap: whether the engine's steps overlap from now on.
    """

    def __init__(self, engine: Engine, seconds: float, overlap: bool) -> None:
        self.seconds = seconds
        self._free_at = 0.0  # the end of all that was launched
        self.engine = engine
        runner: Any = engine.runner
        runner.compute, runner.sample = self.compute, self.sample
        if overlap:
            runner.launch = self.launch
            engine.overlap = Overlap(engine)  # type: ignore[attr-defined]

    def launch(self, plan: StepPlan, draws: list[Any]) -> Callable[[], list[int]]:
        batches = self.engine.runner.batches(plan) if plan.chunks else []  # which a host has to make
        end = self._start() if batches else 0.0

        def wait() -> list[int]:
            wait_until(end)
            return [TOKEN] * len(draws)

        return wait

    def compute(self, batches: list[Any]) -> np.ndarray:
        wait_until(self._start())
        return np.zeros((len(batches[0].sampled_rows), 2))  # [num_sampled, 2]

    def sample(self, logits: np.ndarray, draws: list[Any]) -> list[int]:
        return [TOKEN] * len(draws)

    def _start(self) -> float:
        self._free_at = max(time.perf_counter(), self._free_at) + self.seconds
        return self._free_at


def wait_until(end: float) -> None:
    while time.perf_counter() < end:  # to sleep for less than a millisecond may take several
        pass
