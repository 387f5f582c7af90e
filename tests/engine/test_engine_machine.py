"""Random programs on the whole engine (engine_machine.py says how), and proof that they find bugs.

Below, schedulers, pools, block tables and prefix caches are broken in ways in which real engines were. The machine has
to notice every one, and to say what is wrong in words that help.
"""

from dataclasses import replace

import pytest
from engine.engine_machine import machine
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.memory import BlockCopy, BlockPool, BlockTable, PrefixCache
from minipage.scheduling import GroupStatus, Scheduler


def programs(num_programs, num_steps):
    return settings(
        max_examples=num_programs,
        stateful_step_count=num_steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_every_kernel_call_reads_its_own_prefix_and_every_text_is_what_it_is_alone(tiny):
    run(machine(tiny), settings=programs(20, num_steps=15))


@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
def test_every_way_to_preempt_reads_its_own_prefix(tiny, preemption, caching):
    run(machine(tiny, preemption=preemption, caching=caching), settings=programs(5, num_steps=15))


@pytest.mark.slow
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
def test_every_kernel_call_reads_its_own_prefix_in_longer_programs(tiny, preemption, caching):
    run(machine(tiny, preemption=preemption, caching=caching), settings=programs(3500, num_steps=40))


# ---- broken schedulers


class PreemptionForgetsTheText(Scheduler):
    def preempt(self, group, plan):
        super().preempt(group, plan)
        for seq in group.sequences:
            del seq.token_ids[seq.num_prompt_tokens :]


class PreemptionKeepsTheBlocks(Scheduler):
    def preempt(self, group, plan):
        table = group.leader.block_table
        blocks, num_tokens = table.blocks.copy(), table.num_tokens
        super().preempt(group, plan)
        if group.status is GroupStatus.WAITING:
            table.blocks, table.num_tokens = blocks, num_tokens


class PreemptionReversesTheQueue(Scheduler):
    def preempt(self, group, plan):
        super().preempt(group, plan)
        if group.status is GroupStatus.WAITING:
            self.waiting.reverse()


class PreemptionRecomputesTooLittle(Scheduler):
    def preempt(self, group, plan):
        super().preempt(group, plan)
        if group.status is GroupStatus.WAITING:
            group.leader.block_table.append(min(1, self.block_pool.num_free))  # the first token counts as computed


class AFailedStepCountsAsDone(Scheduler):
    def recompute_all(self):
        pass


class AFinishedSequenceKeepsItsBlocks(Scheduler):
    def finish(self, group, seq):
        group.sequences.remove(seq)
        if not group.sequences:
            self.remove(group)


class AnAbortedGroupStaysInTheQueue(Scheduler):
    def remove(self, group):
        if group in self.running:
            super().remove(group)


class TakesARequestThatNeverFits(Scheduler):
    def add(self, group):
        group.arrival, self._num_arrived = self._num_arrived, self._num_arrived + 1
        self._enqueue(group, GroupStatus.WAITING)


class RefusesARequestThatJustFits(Scheduler):
    def add(self, group):
        group.max_num_tokens += 2 * self.block_pool.block_size
        super().add(group)
        group.max_num_tokens -= 2 * self.block_pool.block_size


class TooManySeats(Scheduler):
    def _seats_left(self):
        return super()._seats_left() + 3


class ComputesOneTokenTooFew(Scheduler):
    def schedule(self):
        plan = super().schedule()
        return replace(plan, chunks=[replace(chunk, num_tokens=max(1, chunk.num_tokens - 1)) for chunk in plan.chunks])


class OvertakesOnTheWayIn(Scheduler):
    def schedule(self):
        self.waiting.reverse()
        return super().schedule()


class SwapsInToOtherBlocks(Scheduler):
    def schedule(self):
        plan = super().schedule()
        sources, destinations = [c.source for c in plan.swap_in], [c.destination for c in plan.swap_in]
        return replace(plan, swap_in=list(map(BlockCopy, sources, destinations[1:] + destinations[:1])))


class SavesNothingWhenItSwapsOut(Scheduler):
    def schedule(self):
        return replace(super().schedule(), swap_out=[])


class CopyOnWriteCopiesNothing(Scheduler):
    def schedule(self):
        return replace(super().schedule(), copies=[])


class SamplesGoOnWithoutTheirPrompt(Scheduler):
    def update(self, plan):
        for chunk in plan.chunks:
            if chunk.group.is_sharing and chunk.group.leader.num_computed_tokens == chunk.group.shared_len:
                chunk.group.is_sharing = False  # but nobody gets a fork of the leader's table


class PublishesBeforeItIsWritten(Scheduler):
    def schedule(self):
        plan = super().schedule()
        for chunk in plan.chunks if self.prefix_cache else ():
            self.prefix_cache.publish(chunk.seq.block_table, chunk.seq.token_ids, chunk.group.cache_salt)
        return plan


class SharesBetweenSalts(Scheduler):
    def _find_prefix(self, group):
        salt, group.cache_salt = group.cache_salt, ""
        found = super()._find_prefix(group)
        group.cache_salt = salt
        return found


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


class ForksWithoutCopyOnWrite(BlockTable):
    def shared_tail(self):
        return None


class HandsOutABlockInUse(BlockPool):
    def allocate_many(self, count):
        blocks = super().allocate_many(count)
        if count and blocks[0] > 0 and self.ref_count(0):
            self.free(blocks[0])
            self.share(0)  # even the reference counts are right
            blocks[0] = 0
        return blocks


# ---- broken prefix caches


class NeverForgets(PrefixCache):
    def forget(self, block):
        pass


class LeavesNoTokenToCompute(PrefixCache):
    def find(self, token_ids, salt=""):
        return super().find([*token_ids, 0], salt)


class KnowsABlockByItsOwnTokens(PrefixCache):
    def block_hash(self, parent, token_ids):
        return super().block_hash(b"", token_ids)


class TakesABlockWithoutAReference(PrefixCache):
    def _hold(self, block):
        if self.pool.ref_count(block) > 0:
            self.pool.share(block)


READS, WRITES = "is read for the tokens", r"writes to block \d+, which \d share|written twice"
RECOMPUTE, SWAP, CACHE, AUTO = {"preemption": "recompute"}, {"preemption": "swap"}, {"caching": True}, {}
MUTANTS = {  # the broken class: (the setting in which it shows, words that the failure message must have)
    PreemptionForgetsTheText: (RECOMPUTE, "had the tokens|go on with|tokens to compute|blocks wanted"),
    PreemptionKeepsTheBlocks: (RECOMPUTE, f"freed twice|block-table entries name it|{READS}|{WRITES}|cannot append -"),
    PreemptionReversesTheQueue: (RECOMPUTE, "places in the order"),
    PreemptionRecomputesTooLittle: (RECOMPUTE, f"waits with blocks in its hands|{READS}|computes nothing|leaked"),
    AFailedStepCountsAsDone: (AUTO, f"computes nothing|{READS}|tokens to compute"),
    AFinishedSequenceKeepsItsBlocks: (AUTO, "leaked"),
    AnAbortedGroupStaysInTheQueue: (AUTO, "queued"),
    TakesARequestThatNeverFits: (AUTO, "can never fit"),
    RefusesARequestThatJustFits: (AUTO, "this fits, but was refused"),
    TooManySeats: (AUTO, r"\d sequences run on \d seats"),
    ComputesOneTokenTooFew: (AUTO, f"{READS}|tokens to compute"),
    OvertakesOnTheWayIn: (RECOMPUTE, "places in the order"),
    SwapsInToOtherBlocks: (SWAP, READS),
    SavesNothingWhenItSwapsOut: (SWAP, READS),
    CopyOnWriteCopiesNothing: (AUTO, READS),
    SamplesGoOnWithoutTheirPrompt: (AUTO, f"{READS}|blocks wanted|computes nothing"),
    PublishesBeforeItIsWritten: (CACHE, "others can find as a prefix|writes to block"),
    SharesBetweenSalts: (CACHE, "of salt ''|of salt 'salt'"),
    FreeKeepsTheTable: (AUTO, f"block-table entries name it|freed twice|cannot allocate -1|{WRITES}"),
    FreeKeepsTheLength: (AUTO, f"{READS}|has no \\d+ tokens to compute|cannot append -"),
    SlotsOneBehind: (AUTO, "holds a [KV] not of|a slot that nobody wrote"),
    ReadsTheBlocksInOrderOfNumber: (AUTO, f"{READS}|holds a [KV] not of|is no number|share|others can find"),
    ForksWithoutCopyOnWrite: (AUTO, r"writes to block \d+, which \d share"),
    HandsOutABlockInUse: (AUTO, f"share|{READS}|written twice"),
    NeverForgets: (CACHE, f"{READS}|others can find as a prefix"),
    LeavesNoTokenToCompute: (CACHE, "tokens to compute|blocks wanted|cannot append -"),
    KnowsABlockByItsOwnTokens: (CACHE, READS),
    TakesABlockWithoutAReference: (CACHE, "block-table entries name it|freed twice"),
}
ROLES = {Scheduler: "Scheduler", BlockPool: "Pool", BlockTable: "Table", PrefixCache: "Cache"}
UNTIL_IT_FAILS = settings(
    programs(400, num_steps=15), derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_machine_catches_it(tiny, mutant):
    setting, words = MUTANTS[mutant]
    with pytest.raises(Exception, match=words):
        run(machine(tiny, **setting, **{ROLES[mutant.__base__]: mutant}), settings=UNTIL_IT_FAILS)
