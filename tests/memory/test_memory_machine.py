"""Random programs on the memory manager (memory_machine.py says how), and proof that they find bugs.

A test that cannot fail proves nothing. So below the real classes are broken in the ways in which real engines were, and
the machine has to notice every one of these mutants, and to say what is wrong in words that help.
"""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.errors import BlockError, OutOfBlocksError
from minipage.memory import BlockPool, BlockTable
from minipage.promises.memory_machine import machine


def programs(count, num_steps):
    """So many programs, or more if the hypothesis profile asks for more; a slow or busy computer changes nothing."""
    no_clock = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    return settings(max_examples=max(count, settings().max_examples), stateful_step_count=num_steps, **no_clock)


def test_every_slot_holds_the_prefix_of_whoever_reads_it():
    run(machine(), settings=programs(100, num_steps=40))


@pytest.mark.slow
def test_every_slot_holds_the_prefix_of_whoever_reads_it_in_longer_programs():
    run(machine(), settings=programs(1000, num_steps=80))


# ---- broken block tables ---------------------------------------------------------------------------------------------


class ForkWithoutShare(BlockTable):
    def fork(self):
        twin = type(self)(self.pool)
        twin.blocks, twin.num_tokens = self.blocks.copy(), self.num_tokens
        return twin


class ForkOfTheSameList(BlockTable):
    def fork(self):
        twin = super().fork()
        twin.blocks = self.blocks
        return twin


class NeverCopiesOnWrite(BlockTable):
    def append(self, num_tokens):
        size = self.pool.block_size
        self.blocks += self.pool.allocate_many(-(-(self.num_tokens + num_tokens) // size) - len(self.blocks))
        self.num_tokens += num_tokens
        return []


class ForgetsToOrderTheCopy(BlockTable):
    def append(self, num_tokens):
        super().append(num_tokens)
        return []


class CopyKeepsTheOldReference(BlockTable):
    def append(self, num_tokens):
        copies = super().append(num_tokens)
        for source, _ in copies:
            self.pool.share(source)
        return copies


class AllocatesWhenTheBlockIsFull(BlockTable):
    """`num_tokens % block_size == 0` where `== 1` was meant: one block too few for the first token of every block."""

    def append(self, num_tokens):
        lengths = range(self.num_tokens + 1, self.num_tokens + num_tokens + 1)
        self.blocks += self.pool.allocate_many(sum(length % self.pool.block_size == 0 for length in lengths))
        self.num_tokens += num_tokens
        return []


class FailedAppendCountsItsTokens(BlockTable):
    def append(self, num_tokens):
        try:
            return super().append(num_tokens)
        except OutOfBlocksError:
            self.num_tokens += num_tokens
            raise


class SlotsOffByOne(BlockTable):
    def slot_mapping(self, start, stop):
        return [slot + 1 for slot in super().slot_mapping(start, stop)]


class KeepsTheFirstBlock(BlockTable):
    def free(self):
        for block in self.blocks[1:]:
            self.pool.free(block)
        self.blocks, self.num_tokens = [], 0


# ---- broken pools ----------------------------------------------------------------------------------------------------


class FreeDropsNoCount(BlockPool):
    def free(self, block):
        if self.ref_count(block) == 0:
            super().free(block)


class FreeKeepsUnsharedBlocks(BlockPool):
    def free(self, block):
        if self.ref_count(block) != 1:
            super().free(block)


class FreeIgnoresOtherHolders(BlockPool):
    def free(self, block):
        for _ in range(max(1, self.ref_count(block))):
            super().free(block)


class HandsOutOneBlockTwice(BlockPool):
    def allocate_many(self, count):
        blocks = super().allocate_many(count)
        if count > 1:
            self.free(blocks[-1])
            self.share(blocks[0])  # even the reference count is right
            blocks[-1] = blocks[0]
        return blocks


class FailureKeepsWhatItGot(BlockPool):
    def allocate_many(self, count):
        return [super(FailureKeepsWhatItGot, self).allocate_many(1)[0] for _ in range(count)]


class FreesTwiceSilently(BlockPool):
    def free(self, block):
        if self.ref_count(block):
            super().free(block)


MUTANTS = {  # the broken class: words that the failure message must have
    ForkWithoutShare: r"2 block-table entries name block \d+, but its reference count is 1",
    ForkOfTheSameList: "block-table entries name|leak",
    NeverCopiesOnWrite: "copy-on-write|must raise OutOfBlocksError",
    ForgetsToOrderTheCopy: r"copies .* copy-on-write should be \[\(.*\)\], not \[\]: .* part full and shared",
    CopyKeepsTheOldReference: "block-table entries name block|leak",
    AllocatesWhenTheBlockIsFull: r"tokens in blocks of \d+ take \d+ blocks|must raise OutOfBlocksError",
    FailedAppendCountsItsTokens: "left something changed behind",
    SlotsOffByOne: "belongs in block|only a block of one's own may be written",
    KeepsTheFirstBlock: "block-table entries name block|leak",
    FreeDropsNoCount: "block-table entries name block|leak",
    FreeKeepsUnsharedBlocks: "block-table entries name block|leak",
    FreeIgnoresOtherHolders: "block-table entries name block|freed twice",
    HandsOutOneBlockTwice: "each once; taken were",
    FailureKeepsWhatItGot: "left something changed behind",
    FreesTwiceSilently: "must raise BlockError",
}
UNTIL_IT_FAILS = settings(
    programs(500, num_steps=30), derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False
)


def broken(mutant, audited):
    part = "Pool" if issubclass(mutant, BlockPool) else "Table"
    return machine(**{part: mutant}, audited=audited)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_catches_it(mutant):
    with pytest.raises((AssertionError, BlockError), match=MUTANTS[mutant]):
        run(broken(mutant, audited=True), settings=UNTIL_IT_FAILS)


CORRUPTING = [NeverCopiesOnWrite, ForgetsToOrderTheCopy, SlotsOffByOne, HandsOutOneBlockTwice]


@pytest.mark.parametrize("mutant", CORRUPTING, ids=lambda mutant: mutant.__name__)
def test_reading_the_slots_back_is_enough_to_catch_what_corrupts_memory(mutant):
    """With every look at counts, queues and copies switched off: only what a table reads gives the bug away."""
    with pytest.raises(AssertionError, match="should find the K and V of the prefix"):
        run(broken(mutant, audited=False), settings=UNTIL_IT_FAILS)
