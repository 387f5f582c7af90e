"""Random traffic on the scheduler (scheduler_machine.py says how), and proof that it finds bugs.

A test that cannot fail proves nothing. So below the scheduler is broken in the ways in which real ones were, and the
machine has to notice every one of these mutants, and to say what is wrong in words that help.
"""

from collections import deque

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run
from scheduler_machine import machine

from minipage.errors import OutOfBlocksError
from minipage.scheduling import Chunk, Scheduler, Status, StepPlan


def traffic(count, num_steps):
    """So many runs, or more if the hypothesis profile asks for more; a slow or busy computer changes nothing."""
    no_clock = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    return settings(max_examples=max(count, settings().max_examples), stateful_step_count=num_steps, **no_clock)


def test_everybody_reads_its_own_tokens_is_treated_fairly_and_finishes():
    run(machine(), settings=traffic(100, num_steps=40))


@pytest.mark.slow
def test_everybody_reads_its_own_tokens_is_treated_fairly_and_finishes_in_longer_runs():
    run(machine(), settings=traffic(1000, num_steps=80))


# ---- the same scheduler in other words, one decision a method, so that a mutant can get one of them wrong ------------


class Rewritten(Scheduler):
    def schedule(self):
        plan = StepPlan([], [], [])
        self.go_on(plan, list(self.running))
        self.admit(plan)
        return plan

    def go_on(self, plan, running):
        for seq in running:
            num_tokens = min(seq.num_uncomputed_tokens, self.budget(plan))
            while seq in self.running and not self.fits(seq, num_tokens):
                plan.preempted.append(self.victim())
                self.preempt(plan.preempted[-1])
            if seq in self.running and num_tokens > 0:
                self.compute(plan, seq, num_tokens)

    def admit(self, plan):
        while self.waiting and self.has_seat() and self.budget(plan) > 0 and not plan.preempted:
            seq = self.next_to_admit()
            if seq is None:
                break
            self.waiting.remove(seq)
            self.running.append(seq)
            seq.status = Status.RUNNING
            self.compute(plan, seq, min(seq.num_uncomputed_tokens, self.budget(plan)))

    def compute(self, plan, seq, num_tokens):
        plan.chunks.append(Chunk(seq, self.start(seq), num_tokens))
        plan.copies.extend(seq.block_table.append(num_tokens))

    def budget(self, plan):
        return self.max_num_batched_tokens - sum(chunk.num_tokens for chunk in plan.chunks)

    def fits(self, seq, num_tokens):
        return seq.block_table.blocks_to_allocate(num_tokens) <= self.block_pool.num_free

    def has_seat(self):
        return len(self.running) < self.max_num_seqs

    def next_to_admit(self):
        seq = self.waiting[0]
        return seq if self.fits(seq, seq.num_uncomputed_tokens) else None

    def start(self, seq):
        return seq.num_computed_tokens

    def victim(self):
        return self.running[-1]


def test_another_scheduler_that_keeps_the_same_promises_passes():
    run(machine(Rewritten), settings=traffic(50, num_steps=30))


# ---- broken ones -----------------------------------------------------------------------------------------------------


class PreemptionLosesGeneratedTokens(Scheduler):
    def preempt(self, seq):
        super().preempt(seq)
        del seq.token_ids[seq.num_prompt_tokens :]


class PreemptionKeepsTheBlocks(Scheduler):
    def preempt(self, seq):
        self.running.remove(seq)
        self.waiting.appendleft(seq)
        seq.status = Status.WAITING


class PreemptedGoesToTheBackOfTheQueue(Scheduler):
    def preempt(self, seq):
        super().preempt(seq)
        self.waiting.rotate(-1)


class PreemptsTheOldest(Rewritten):
    def victim(self):
        return self.running[0]


class PreemptsTheSequenceThatAsks(Rewritten):
    def go_on(self, plan, running):
        for seq in running:
            self.victim = lambda seq=seq: seq
            super().go_on(plan, [seq])


class PreemptsBeforeItMust(Rewritten):
    def go_on(self, plan, running):
        if self.block_pool.num_free == 0 and len(running) > 1:
            plan.preempted.append(running[-1])
            self.preempt(running.pop())
        super().go_on(plan, running)


class StartsOneTokenLate(Rewritten):
    def start(self, seq):
        return seq.num_computed_tokens + (seq.num_computed_tokens > 0)


class StartsOneTokenEarly(Rewritten):
    def start(self, seq):
        return max(0, seq.num_computed_tokens - 1)


class StartsEveryChunkAtTheBeginning(Rewritten):
    def start(self, seq):
        return 0 if seq.num_uncomputed_tokens > 1 else seq.num_computed_tokens


class AdmitsWithoutFreeBlocks(Rewritten):
    def next_to_admit(self):
        return self.waiting[0]


class AdmitsWhoeverFits(Rewritten):
    def next_to_admit(self):
        return next((seq for seq in self.waiting if self.fits(seq, seq.num_uncomputed_tokens)), None)


class NeverGivesTheLastBlockAway(Rewritten):
    def next_to_admit(self):
        seq = self.waiting[0]
        wanted = seq.block_table.blocks_to_allocate(seq.num_uncomputed_tokens)
        return seq if wanted < self.block_pool.num_free else None


class WaitingBeforeRunning(Rewritten):
    def schedule(self):
        plan, running = StepPlan([], [], []), list(self.running)
        self.admit(plan)
        self.go_on(plan, running)
        return plan


class OneSeatTooMany(Rewritten):
    def has_seat(self):
        return len(self.running) <= self.max_num_seqs


class PromptsIgnoreTheBudget(Rewritten):
    def admit(self, plan):
        self.budget = lambda plan: 10**9
        super().admit(plan)
        del self.budget


class AdmitsWhatCanNeverFit(Scheduler):
    def add(self, seq):
        self.waiting.append(seq)


class AbortedStaysInTheWaitingQueue(Scheduler):
    def remove(self, seq):
        waiting = deque(self.waiting)
        super().remove(seq)
        self.waiting = waiting


class AbortKeepsTheBlocks(Scheduler):
    def remove(self, seq):
        blocks = list(seq.block_table)
        for block in blocks:
            self.block_pool.share(block)
        super().remove(seq)


class FinishedKeepRunning(Scheduler):
    def update(self, plan):
        pass


class FailedStepIsTrusted(Scheduler):
    def undo(self, plan):
        pass


class FailedStepTurnsTheQueueAround(Scheduler):
    def undo(self, plan):
        super().undo(plan._replace(chunks=plan.chunks[::-1]))


MUTANTS = {  # the broken class: words that the failure message must have
    PreemptionLosesGeneratedTokens: "lost tokens",
    PreemptionKeepsTheBlocks: "is waiting but holds blocks",
    PreemptedGoesToTheBackOfTheQueue: "first come, first served",
    PreemptsTheOldest: "was preempted although .* which came later, goes on",
    PreemptsTheSequenceThatAsks: "was preempted although .* which came later, goes on",
    PreemptsBeforeItMust: "was preempted for nothing",
    StartsOneTokenLate: r"(\d+) tokens had been computed, so token \1 is next, not token",
    StartsOneTokenEarly: r"(\d+) tokens had been computed, so token \1 is next, not token",
    StartsEveryChunkAtTheBeginning: r"(\d+) tokens had been computed, so token \1 is next, not token 0",
    AdmitsWithoutFreeBlocks: r"\d+ blocks wanted, \d+ of \d+ are free",
    AdmitsWhoeverFits: "first come, first served",
    NeverGivesTheLastBlockAway: "is the oldest, but this step does nothing for it: it starves",
    WaitingBeforeRunning: "the oldest",
    OneSeatTooMany: "sequences are running, but max_num_seqs is",
    PromptsIgnoreTheBudget: "but max_num_batched_tokens is",
    AdmitsWhatCanNeverFit: "it can never fit, refuse it",
    AbortedStaysInTheWaitingQueue: "finished.* are done but still queued",
    AbortKeepsTheBlocks: "blocks are in use, .* have an owner",
    FinishedKeepRunning: "finished.* are done but still queued",
    FailedStepIsTrusted: "but holds half written",
    FailedStepTurnsTheQueueAround: "first come, first served",
}
UNTIL_IT_FAILS = settings(
    traffic(500, num_steps=30), derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_catches_it(mutant):
    with pytest.raises((AssertionError, OutOfBlocksError), match=MUTANTS[mutant]):
        run(machine(mutant), settings=UNTIL_IT_FAILS)
