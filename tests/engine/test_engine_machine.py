"""Random programs on the whole engine (engine_machine.py says how), and proof that they find bugs.

Below, schedulers, pools and block tables are broken in ways in which real engines were. The machine has to notice every
one, and to say what is wrong in words that help.
"""

import pytest
from engine.engine_machine import machine
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.memory import BlockPool, BlockTable
from minipage.scheduling import Chunk, Scheduler, Status


def programs(num_programs, num_steps):
    return settings(max_examples=num_programs, stateful_step_count=num_steps, deadline=None)


def test_every_kernel_call_reads_its_own_prefix_and_every_text_is_that_of_the_dense_model(tiny):
    run(machine(tiny), settings=programs(60, num_steps=25))


@pytest.mark.slow
def test_every_kernel_call_reads_its_own_prefix_in_longer_programs(tiny):
    run(machine(tiny), settings=programs(1500, num_steps=60))


# ---- broken schedulers


class PreemptionForgetsTheText(Scheduler):
    def preempt(self, seq):
        super().preempt(seq)
        del seq.token_ids[seq.num_prompt_tokens :]


class PreemptionKeepsTheBlocks(Scheduler):
    def preempt(self, seq):
        blocks, num_tokens = seq.block_table.blocks.copy(), seq.block_table.num_tokens
        super().preempt(seq)
        seq.block_table.blocks, seq.block_table.num_tokens = blocks, num_tokens


class PreemptionGoesToTheBackOfTheQueue(Scheduler):
    def preempt(self, seq):
        super().preempt(seq)
        self.waiting.rotate(-1)


class PreemptionRecomputesTooLittle(Scheduler):
    def preempt(self, seq):
        super().preempt(seq)
        seq.block_table.append(min(1, self.block_pool.num_free))  # the first token counts as computed


class AFailedStepCountsAsDone(Scheduler):
    def undo(self, plan):
        pass


class AFinishedSequenceKeepsItsBlocks(Scheduler):
    def update(self, plan):
        for chunk in plan.chunks:
            if chunk.seq.status is Status.FINISHED:
                self.running.remove(chunk.seq)


class AnAbortedSequenceStaysInTheQueue(Scheduler):
    def remove(self, seq):
        if seq in self.running:
            self.running.remove(seq)
        seq.block_table.free()
        seq.status = Status.FINISHED


class TakesARequestThatNeverFits(Scheduler):
    def add(self, seq):
        self.waiting.append(seq)


class RefusesARequestThatJustFits(Scheduler):
    def add(self, seq):
        seq.max_num_tokens += self.block_pool.block_size
        super().add(seq)
        seq.max_num_tokens -= self.block_pool.block_size


class TooManySeats(Scheduler):
    def __init__(self, block_pool, max_num_seqs, max_num_batched_tokens):
        super().__init__(block_pool, max_num_seqs + 1, max_num_batched_tokens)
        self.max_num_seqs = max_num_seqs

    def schedule(self):
        self.max_num_seqs += 1
        plan = super().schedule()
        self.max_num_seqs -= 1
        return plan


class ComputesOneTokenTooFew(Scheduler):
    def schedule(self):
        plan = super().schedule()
        return plan._replace(chunks=[Chunk(seq, start, max(1, n - 1)) for seq, start, n in plan.chunks])


class OvertakesOnTheWayIn(Scheduler):
    def schedule(self):
        self.waiting.rotate(1)
        return super().schedule()


# ---- broken memory


class FreeKeepsTheTable(BlockTable):
    def free(self):
        blocks = self.blocks.copy()
        super().free()
        self.blocks = blocks


class FreeKeepsTheLength(BlockTable):
    def free(self):
        num_tokens = self.num_tokens
        super().free()
        self.num_tokens = num_tokens


class SlotsOneBehind(BlockTable):
    def slot_mapping(self, start, stop):
        slots = super().slot_mapping(start, stop)
        return [max(0, slot - 1) for slot in slots]


class ReadsTheBlocksInOrderOfNumber(BlockTable):
    def __iter__(self):
        return iter(sorted(self.blocks))


class HandsOutABlockInUse(BlockPool):
    def allocate_many(self, count):
        blocks = super().allocate_many(count)
        if count and blocks[0] > 0 and self.ref_count(0):
            self.free(blocks[0])
            self.share(0)  # even the reference counts are right
            blocks[0] = 0
        return blocks


MUTANTS = {  # the broken class: words that the failure message must have
    PreemptionForgetsTheText: "had the tokens|does not follow|queued",
    PreemptionKeepsTheBlocks: "freed twice|block-table entries name it",
    PreemptionGoesToTheBackOfTheQueue: "but they arrived as",
    PreemptionRecomputesTooLittle: "waits with blocks in his hands|is read for the tokens|do not finish",
    AFailedStepCountsAsDone: "computed nothing|is read for the tokens|do not finish",
    AFinishedSequenceKeepsItsBlocks: "leaked",
    AnAbortedSequenceStaysInTheQueue: "queued",
    TakesARequestThatNeverFits: "can never fit",
    RefusesARequestThatJustFits: r"\d tokens fit",
    TooManySeats: r"\d sequences run on \d seats",
    ComputesOneTokenTooFew: "is read for the tokens|do not finish",
    OvertakesOnTheWayIn: "but they arrived as",
    FreeKeepsTheTable: "block-table entries name it|freed twice|cannot allocate -1",
    FreeKeepsTheLength: "is read for the tokens",
    SlotsOneBehind: "holds a [KV] not of",
    ReadsTheBlocksInOrderOfNumber: "is read for the tokens|holds a [KV] not of",
    HandsOutABlockInUse: "share|is read for the tokens|written twice",
}
UNTIL_IT_FAILS = settings(
    programs(300, num_steps=25), derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_catches_it(tiny, mutant):
    role = {Scheduler: "scheduler", BlockPool: "pool", BlockTable: "table"}[mutant.__base__]
    with pytest.raises(Exception, match=MUTANTS[mutant]):
        run(machine(tiny, **{role: mutant}), settings=UNTIL_IT_FAILS)
