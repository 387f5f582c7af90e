"""A server in simulated time: minipage's own scheduler, pool and prefix cache, and a clock in place of the model.

A step takes BASE milliseconds and PER_TOKEN for each token that it computes, as a GPU does whose weights are read in
every step. Nothing is measured, so a score is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.scheduling import Scheduler, Sequence, SequenceGroup

BASE, PER_TOKEN = 10.0, 0.1  # milliseconds


@dataclass
class Job:
    """A request, and what became of it. Times are milliseconds."""

    name: str
    arrival: float
    prompt: list[int]
    num_output_tokens: int
    deadline: float = 1e9  # for its first token
    times: list[float] = field(default_factory=list)  # when its tokens came out

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + self.num_output_tokens


class Server:
    """One engine. `scheduler` is a class; `options` are those of Scheduler."""

    def __init__(
        self, num_blocks: int, block_size: int = 16, caching: bool = False,
        scheduler: type[Scheduler] = Scheduler, **options: object,
    ) -> None:  # fmt: skip
        self.pool = BlockPool(num_blocks, block_size)
        cache = PrefixCache(self.pool) if caching else None
        self.scheduler = scheduler(self.pool, prefix_cache=cache, **options)  # type: ignore[arg-type]
        self.now, self.num_computed = 0.0, 0  # milliseconds; tokens, those that were computed again counted again
        self.jobs: dict[SequenceGroup, Job] = {}

    def add(self, job: Job) -> None:
        group = SequenceGroup(job.name, [Sequence(job.name, job.prompt, BlockTable(self.pool))], job.num_tokens)
        self.jobs[group] = job
        self.scheduler.add(group)

    def step(self) -> None:
        """One step of the engine; finished requests give their blocks back."""
        plan = self.scheduler.schedule()
        computed = sum(chunk.num_tokens for chunk in plan.chunks)
        self.num_computed += computed
        self.now += BASE + PER_TOKEN * computed
        receivers = [(chunk.group, seq) for chunk in plan.chunks for seq in chunk.receivers]
        self.scheduler.update(plan)
        for group, seq in receivers:
            job = self.jobs[group]
            seq.token_ids.append(1000 + len(seq.token_ids))  # what it is does not matter
            job.times.append(self.now)
            if len(seq.token_ids) == group.max_num_tokens:
                self.scheduler.finish(group, seq)

    def run(self, jobs: list[Job], before_step: Callable[[], object] = lambda: None) -> None:
        """All of them, each from its arrival on, to the end."""
        coming = sorted(jobs, key=lambda job: job.arrival)
        while coming or self.scheduler.has_unfinished:
            if not self.scheduler.has_unfinished:
                self.now = max(self.now, coming[0].arrival)
            while coming and coming[0].arrival <= self.now:
                self.add(coming.pop(0))
            before_step()
            self.step()
