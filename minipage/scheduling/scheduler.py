"""Who runs in the next step, for how many tokens, and who must give way.

Continuous batching (Yu et al., Orca, OSDI 2022) decides anew at every step, so a request joins as soon as there is room
and leaves as soon as it is done. A step may compute `max_num_batched_tokens` tokens:

    1. running sequences first, oldest first: one token each, or the next chunk of a prompt that is not done yet;
       when the pool runs dry, the latest of them is preempted: its blocks are freed, it waits and is recomputed later
    2. then waiting sequences, first come first served, while there are tokens, blocks and seats (`max_num_seqs`) left;
       a long prompt is cut into chunks (chunked prefill, Agrawal et al., Sarathi, arXiv 2308.16369)

The oldest sequence is never preempted for another, and a sequence that the whole pool could not hold is refused when it
is added, so every step makes progress and everybody finishes.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from minipage.errors import InvalidRequestError, require_positive
from minipage.memory import BlockCopy, BlockPool, blocks_needed
from minipage.scheduling.sequence import Sequence, Status


class Chunk(NamedTuple):
    """The part of one sequence that a step computes: its tokens `start` to `start + num_tokens - 1`."""

    seq: Sequence
    start: int  # = tokens computed before this step
    num_tokens: int

    @property
    def reaches_end(self) -> bool:
        """Whether the sequence's last known token is computed, so that its logits give the next one."""
        return self.start + self.num_tokens == len(self.seq.token_ids)


class StepPlan(NamedTuple):
    """Everything one step will do."""

    chunks: list[Chunk]  # what to compute, in the order of the flat batch
    copies: list[BlockCopy]  # blocks to copy before anything is written
    preempted: list[Sequence]  # lost their blocks to make room


class Scheduler:
    """First come first served, with preemption by recomputation.

    `waiting` and `running` are in order of arrival, earliest first.

    Raises:
        ConfigurationError: `max_num_seqs` or `max_num_batched_tokens` is not a whole number of at least 1.
    """

    def __init__(self, block_pool: BlockPool, max_num_seqs: int = 256, max_num_batched_tokens: int = 2048) -> None:
        require_positive(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
        self.block_pool = block_pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_unfinished(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        """Put a new sequence at the end of the queue.

        Raises InvalidRequestError if it could outgrow the whole pool: even alone, it might never finish.
        """
        most = blocks_needed(seq.max_num_tokens - 1, self.block_pool.block_size)  # the last token is never stored
        if most > self.block_pool.num_blocks:
            pool = self.block_pool
            raise InvalidRequestError(
                f"a prompt of {seq.num_prompt_tokens} tokens, and up to {seq.max_num_tokens} with those to come, takes "
                f"{most} blocks of {pool.block_size}, but the whole pool has {pool.num_blocks}. "
                "Lower max_tokens, shorten the prompt, or give the engine more num_blocks or memory."
            )
        self.waiting.append(seq)

    def schedule(self) -> StepPlan:
        """Choose what the next step computes, and give every token of it a slot."""
        plan = StepPlan([], [], [])
        budget = self.max_num_batched_tokens
        for seq in self.running:  # from the oldest; a preemption takes from the other end of this very list
            num_tokens = min(seq.num_uncomputed_tokens, budget)
            if num_tokens == 0 or not self._make_room(seq, num_tokens, plan):
                break
            budget -= self._plan_chunk(plan, seq, num_tokens)
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs and not plan.preempted:
            seq = self.waiting[0]
            if seq.block_table.blocks_to_allocate(seq.num_uncomputed_tokens) > self.block_pool.num_free:
                break  # nobody overtakes: a long prompt would wait for ever behind a stream of short ones
            self.running.append(self.waiting.popleft())
            seq.status = Status.RUNNING
            budget -= self._plan_chunk(plan, seq, min(seq.num_uncomputed_tokens, budget))
        return plan

    def update(self, plan: StepPlan) -> None:
        """After a step: sequences that finished in it give their blocks back."""
        for chunk in plan.chunks:
            if chunk.seq.status is Status.FINISHED:
                self.remove(chunk.seq)

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out, whatever its state, and free its blocks: it is finished, or was aborted."""
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        seq.block_table.free()
        seq.status = Status.FINISHED

    def preempt(self, seq: Sequence) -> None:
        """Send a running sequence back to the head of the queue, without its blocks.

        It keeps its tokens, the generated ones too: all of them will be recomputed, as one prompt.
        """
        self.running.remove(seq)
        self.waiting.appendleft(seq)
        seq.block_table.free()
        seq.status = Status.WAITING
        seq.num_preemptions += 1

    def undo(self, plan: StepPlan) -> None:
        """A step failed half way: what it was to write cannot be trusted, so its sequences will be recomputed."""
        for chunk in reversed(plan.chunks):
            if chunk.seq.status is Status.RUNNING:
                self.preempt(chunk.seq)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the block tables of the running sequences account for every block in use."""
        self.block_pool.check_integrity(seq.block_table for seq in [*self.running, *self.waiting])

    def _make_room(self, seq: Sequence, num_tokens: int, plan: StepPlan) -> bool:
        """Preempt the latest until `seq` can grow; False if that was `seq` itself."""
        while seq.block_table.blocks_to_allocate(num_tokens) > self.block_pool.num_free:
            latest = self.running[-1]
            self.preempt(latest)
            plan.preempted.append(latest)
            if latest is seq:
                return False
        return True

    def _plan_chunk(self, plan: StepPlan, seq: Sequence, num_tokens: int) -> int:
        start = seq.num_computed_tokens
        plan.copies.extend(seq.block_table.append(num_tokens))
        plan.chunks.append(Chunk(seq, start, num_tokens))
        return num_tokens
