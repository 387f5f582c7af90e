"""Rank 0's runner: it tells the other ranks what the engine wants of it, and does its own part.

To the engine it is a runner like any other. What it hands on is a step's arrays, and never a request or a block table.
A step that raises here, or is interrupted, leaves the others in the middle of theirs: before the next one, all of them
leave it and connect anew. A rank that is lost cannot be mended: then whatever is asked for raises RankError.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from minipage.attention import KVCache
from minipage.errors import ConfigurationError, IntegrityError
from minipage.memory import BlockPool
from minipage.memory.kv_groups import KVGroups
from minipage.sampling import Draw
from minipage.scheduling import StepPlan
from minipage.worker.batch import Batch
from minipage.worker.ranks.follower import call
from minipage.worker.ranks.meeting import Meeting, share_cores
from minipage.worker.ranks.message import pack_call, pack_step
from minipage.worker.ranks.process_group import ProcessGroup
from minipage.worker.ranks.watch import Watch
from minipage.worker.runner import ModelRunner


class LeadingRunner(ModelRunner):
    """Runs a model in several ranks, of which this process is the first.

    Args:
        runner: computes this rank's part.
        group: the connections to the others, each of which is in `follow`.
        meeting: where they were found.
    """

    swap_cache: KVCache | None = None
    is_alone = False

    def __init__(self, runner: ModelRunner, group: ProcessGroup, meeting: Meeting) -> None:
        self.runner = runner
        self.model = runner.model  # this rank's part
        self.group = group
        self.meeting = meeting
        self.watch = Watch(meeting, group)
        self._is_torn = False  # the others may be in the middle of a step that this rank has left
        self._num_calls = 0
        self._plan: StepPlan | None = None  # whose step the others are in
        self._batches: list[Batch] = []
        if hasattr(runner, "launch"):
            self.launch = self._launch

    # ---- what the engine calls

    @property
    def lost(self) -> str | None:  # type: ignore[override]
        return self.watch.lost

    @property
    def kv_groups(self) -> KVGroups:
        return self.runner.kv_groups

    @kv_groups.setter
    def kv_groups(self, kv_groups: KVGroups) -> None:
        self.runner.kv_groups = kv_groups  # the others are told with the next call

    def check_alive(self) -> None:
        self.watch.check_alive()

    def blocks_that_fit(self, memory: int | str | None, block_size: int, name: str = "memory") -> int:
        """How many blocks `memory` holds, which every rank has for itself: in the rank with the least room."""
        return int(min(self.ask("blocks_that_fit", memory=memory, block_size=block_size, name=name)))

    def allocate(self, block_pool: BlockPool, swap_pool: BlockPool | None) -> None:
        sizes = [(pool.num_blocks, pool.block_size) if pool else None for pool in (block_pool, swap_pool)]
        self.ask("allocate", pool=sizes[0], swap_pool=sizes[1])
        self.kv_cache = self.runner.kv_cache
        self.swap_cache = self.runner.swap_cache

    def copy(self, plan: StepPlan) -> None:
        """Tell the others all of the step, and move this rank's part of the blocks."""
        self._tell(plan)
        self.runner.copy(plan)
        self._is_torn = bool(self._batches)

    def forward(self, plan: StepPlan) -> np.ndarray:
        if plan is not self._plan or not self._batches:
            raise ConfigurationError("with several ranks, copy(plan) comes before forward(plan): it tells the others.")
        share_cores(self.group.size)
        with self.watch.no_rank_lost():
            logits = self.runner.compute(self._batches)
        self._is_torn = False
        return logits

    def sample(self, logits: np.ndarray, draws: Sequence[tuple[int, Draw]]) -> list[int]:
        with self.watch.no_rank_lost():
            self.group.waiting_since = time.monotonic()  # on a GPU, for all that was launched
            return self.runner.sample(logits, draws)

    def rows(self, logits: np.ndarray, rows: Collection[int]) -> dict[int, np.ndarray]:
        with self.watch.no_rank_lost():
            self.group.waiting_since = time.monotonic()
            return self.runner.rows(logits, rows)

    def _launch(self, plan: StepPlan, draws: Sequence[tuple[int, Draw]]) -> Callable[[], Any]:
        """On a GPU: start a whole step in all ranks; what is returned waits for its tokens (see engine/overlap.py).
        The others' hosts are ahead of their GPUs, too, and get the tokens of the step before on the device."""
        self._tell(plan)
        with self.watch.no_rank_lost():
            self.group.waiting_since = time.monotonic()  # a graph that is captured waits for what was launched
            wait = self.runner.launch(plan, draws, self._batches)  # type: ignore[attr-defined]
        self._is_torn = False

        def wait_for_ranks() -> Any:
            with self.watch.no_rank_lost():
                self.group.waiting_since = time.monotonic()
                return wait()

        return wait_for_ranks

    # ---- what else can be asked of all ranks

    def ask(self, what: str, /, **arguments: Any) -> list[Any]:
        """Let every rank call a method of its runner (see follower.py); returns their answers, in order.

        Raises RankError if one of them is lost, or else what this rank raises, or what another one did.
        """
        self._begin()
        self._num_calls += 1
        self._is_torn = True
        with self.watch.no_rank_lost():
            self.group.send(pack_call(what, arguments | self._about_calls()))
            try:
                own = call(self.runner, what, arguments)
            finally:
                keys = {rank: f"answer {self._num_calls} of {rank}" for rank in self.group.others}
                others = [self.watch.wait_for(key, rank) for rank, key in keys.items()]
        self._is_torn = False
        for rank, (error, _) in zip(self.group.others, others):
            if error is not None:
                raise ConfigurationError(f"rank {rank}: {error}")
        return [own, *(answer for _, answer in others)]

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every rank has as many blocks, and has done the same steps, as this one."""
        states = self.ask("state")
        for rank, state in enumerate(states):
            if state != states[0]:
                raise IntegrityError(f"rank {rank} has {state}, where rank 0 has {states[0]}.")

    def shutdown(self) -> None:
        """End the other ranks. They also end when this process does, or forgets them."""
        self.watch.end("the ranks were shut down")

    # ---- helpers

    def _about_calls(self) -> dict[str, Any]:
        return {"number": self._num_calls, "in_groups": self.kv_groups.parts != (None,)}

    def _tell(self, plan: StepPlan) -> None:
        """Let the others do a step."""
        self._begin()
        self._plan, self._batches = plan, self.runner.batches(plan) if plan.chunks else []
        self._is_torn = True
        with self.watch.no_rank_lost():
            self.group.send(pack_step(plan, self._batches))

    def _begin(self) -> None:
        self.watch.check_alive()
        if self._is_torn:
            with self.watch.no_rank_lost():
                self.group.connect()
            self._is_torn = False
