"""The same requests in contiguous memories, beside the engine and its blocks: scenario `fragmentation`.

    engine step ──▶ who has come ──▶ longest case │ power of two │ oracle      each a memory as large as the pool

The allocators are the simulation's (simulate/baselines.py), and are used as it uses them: first come, first served, a
piece for each request, one more token a step. Nothing is computed for them. The tokens would be the same as the
engine's, since where K and V lie changes no token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from minipage.simulate.baselines import (
    BuddyAllocator,
    ContiguousTable,
    ReservationRule,
    reserve_max,
    reserve_oracle,
    reserve_pow2,
)
from minipage.simulate.simulation import Job, Request, admit, decode
from minipage.trace.recording.frames import Piece
from minipage.trace.recording.trace import Trace

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

RULES: dict[str, ReservationRule] = {
    "longest case": reserve_max,
    "power of two": reserve_pow2,
    "oracle": reserve_oracle,
}


class Comparison:
    """Lets contiguous memories serve what the engine serves, and writes it down beside each of its steps."""

    def __init__(self, llm: LLM) -> None:
        pool = llm.block_pool
        sizes = pool.num_blocks * pool.block_size, llm.max_model_len, llm.scheduler.max_num_seqs
        self.memories = {name: ContiguousMemory(rule, *sizes) for name, rule in RULES.items()}

    @contextmanager
    def around_step(self, trace: Trace) -> Iterator[None]:
        seen = len(trace.changes)
        yield
        changes = trace.changes[seen:]
        come = [new for change in changes for new in change.get("new", ())]
        if changes:  # from its first phase on, so that every frame shows the memories side by side
            changes[0]["contiguous"] = {name: memory.step(come) for name, memory in self.memories.items()}


class ContiguousMemory:
    """One contiguous memory: who runs in it and where, and who waits."""

    def __init__(self, rule: ReservationRule, num_slots: int, max_model_len: int, max_num_seqs: int) -> None:
        self.allocator = BuddyAllocator(num_slots)
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.labels: dict[Job, str] = {}
        self._rule = rule
        self._max_model_len = max_model_len
        self._max_num_seqs = max_num_seqs

    def step(self, come: Iterable[dict[str, Any]]) -> list[list[Any]]:
        """One step of the engine has passed, at the beginning of which some have `come`. Returns what happened."""
        told: list[list[Any]] = []
        for new in come:
            request = Request(new["num_prompt_tokens"], new["max_num_tokens"] - new["num_prompt_tokens"])
            job = Job(request, self._reserve(request), request.num_prompt_tokens)
            self.labels[job] = new["label"]
            self.waiting.append(job)
            told.append(["come", new["label"]])
        if self.running:
            decode(self.running)  # nobody has to give way: the room is reserved
            told.append(["grow"])
        num_old = len(self.running)
        next_ones = deque(islice(self.waiting, self._max_num_seqs - num_old))
        admit(self.running, next_ones, self._reserve, requests=iter(()))
        for job in self.running[num_old:]:
            self.waiting.popleft()
            told.append(["start", *self._piece(job)])
        for job in [job for job in self.running if job.num_tokens == num_stored_at_last(job)]:
            job.table.free()
            self.running.remove(job)
            told.append(["end", self.labels[job]])
        return told

    def _reserve(self, request: Request) -> ContiguousTable:
        return ContiguousTable(self.allocator, self._rule(*request, self._max_model_len))

    def _piece(self, job: Job) -> Piece:
        table = job.table
        assert isinstance(table, ContiguousTable) and table.start is not None
        return Piece(self.labels[job], table.start, table.num_reserved, table.num_tokens, num_stored_at_last(job))


def num_stored_at_last(job: Job) -> int:
    """All tokens of a request except the last are stored: nobody reads after the last one."""
    return job.request.final_len - 1
