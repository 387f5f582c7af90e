"""Random programs with a prefix cache and a second pool (prefix_machine.py says how), and proof that they find bugs."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.errors import BlockError, OutOfBlocksError
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.promises.prefix_machine import machine


def programs(count, num_steps):
    """So many programs, or more if the hypothesis profile asks for more; a slow or busy computer changes nothing."""
    no_clock = {"deadline": None, "suppress_health_check": [*HealthCheck]}
    return settings(max_examples=max(count, settings().max_examples), stateful_step_count=num_steps, **no_clock)


class WrittenOut(PrefixCache):
    """The same cache without hashes: a hash is the text itself, so that there is nothing to collide."""

    def root_hash(self, salt):
        return repr(salt).encode()

    def block_hash(self, parent, token_ids):
        return parent + repr(list(token_ids)).encode()


def test_nobody_is_given_another_texts_blocks():
    run(machine(), settings=programs(100, num_steps=25))


def test_a_cache_that_compares_whole_texts_instead_of_hashes_passes():
    run(machine(Cache=WrittenOut), settings=programs(50, num_steps=25))


@pytest.mark.slow
def test_nobody_is_given_another_texts_blocks_in_longer_programs():
    run(machine(), settings=programs(1000, num_steps=80))


# ---- broken caches ---------------------------------------------------------------------------------------------------


class EveryKeyIsTheSame(PrefixCache):
    def block_hash(self, parent, token_ids):
        return b"hash"


class KeyAddsTokensUp(PrefixCache):
    """One token goes up by 1, its neighbour down by 1: the same hash."""

    def block_hash(self, parent, token_ids):
        return (int.from_bytes(parent, "big") + sum(token_ids)).to_bytes(64, "big")


class KeyForgetsItsParent(PrefixCache):
    def block_hash(self, parent, token_ids):
        return super().block_hash(b"", token_ids)


class SaltIsIgnored(PrefixCache):
    def root_hash(self, salt):
        return super().root_hash("")


class ReusedBlocksStayKnown(PrefixCache):
    def forget(self, block):
        pass


class ForgetsATwinToo(PrefixCache):
    def forget(self, block):
        if block in self:
            super().forget(block)
            for twin in list(self._hash_of)[:1]:
                super().forget(twin)


class HitLeavesNothingToCompute(PrefixCache):
    def find(self, token_ids, salt=""):
        return super().find([*token_ids, 0], salt)


class FindTakesReferences(PrefixCache):
    def find(self, token_ids, salt=""):
        blocks, hashes = super().find(token_ids, salt)
        for block in blocks:
            self._hold(block)
        return blocks, hashes


class FindsOnlyWhatIsInUse(PrefixCache):
    def find(self, token_ids, salt=""):
        blocks, hashes = super().find(token_ids, salt)
        in_use = [block for block in blocks if self.pool.ref_count(block)]
        return in_use, hashes[: len(in_use)]


class AdoptTakesNoReferences(PrefixCache):
    def adopt(self, table, blocks, hashes):
        table.blocks, table.block_hashes = list(blocks), list(hashes)
        table.num_tokens = len(blocks) * self.pool.block_size


class PublishesPartFullBlocks(PrefixCache):
    def publish(self, table, token_ids, salt=""):
        num_tokens, table.num_tokens = table.num_tokens, len(table) * self.pool.block_size
        super().publish(table, token_ids, salt)
        table.num_tokens = num_tokens


class StoresEqualTextsTwice(PrefixCache):
    def publish(self, table, token_ids, salt=""):
        own = list(table.blocks)
        for block in own:
            self.pool.share(block)
        super().publish(table, token_ids, salt)
        for i, block in enumerate(table.blocks):
            self.pool.free(block)
            table.blocks[i] = own[i]


class DuplicateIsNeverGivenBack(PrefixCache):
    def publish(self, table, token_ids, salt=""):
        own = list(table.blocks)
        super().publish(table, token_ids, salt)
        for before, after in zip(own, table.blocks):
            if before != after and self.pool.ref_count(before):
                self.pool.share(before)
            elif before != after:
                self.pool.revive(before)


class ResetForgetsNothing(PrefixCache):
    def reset(self):
        pass


# ---- broken pools and tables -----------------------------------------------------------------------------------------


class RevivedStaysInTheQueue(BlockPool):
    def revive(self, block):
        super().revive(block)
        self._free_queue[block] = None


class RevivedIsForgotten(BlockPool):
    def revive(self, block):
        super().revive(block)
        self.on_evict(block)


class RevivesWhatIsInUse(BlockPool):
    def revive(self, block):
        self.share(block) if self.ref_count(block) else super().revive(block)


class ReusesTheLatestFirst(BlockPool):
    def allocate_many(self, count):
        for block in list(self._free_queue)[-count:] if count else []:
            self._free_queue.move_to_end(block, last=False)
        return super().allocate_many(count)


class FreesHeadFirst(BlockTable):
    def free(self):
        self.blocks.reverse()
        super().free()


class ForkOfTheSameKeys(BlockTable):
    def fork(self):
        twin = super().fork()
        twin.block_hashes = self.block_hashes
        return twin


class MoveKeepsTheOldBlocks(BlockTable):
    def move_to(self, pool, moved):
        for block in self.blocks:
            self.pool.share(block)
        super().move_to(pool, moved)


class MovesSharedBlocksAgain(BlockTable):
    def move_to(self, pool, moved):
        super().move_to(pool, {})
        moved.update((block, block) for block in self.blocks)


class MoveMixesBlocksUp(BlockTable):
    def move_to(self, pool, moved):
        super().move_to(pool, moved)
        self.blocks.reverse()


MUTANTS = {  # the broken class: words that the failure message must have
    EveryKeyIsTheSame: "another text's K and V|takes that one, so that nothing is stored twice",
    KeyAddsTokensUp: "another text's K and V|takes that one, so that nothing is stored twice",
    KeyForgetsItsParent: "another text's K and V|takes that one, so that nothing is stored twice",
    SaltIsIgnored: "another text's K and V|takes that one, so that nothing is stored twice",
    ReusedBlocksStayKnown: "another text's K and V|the cache should know the blocks",
    ForgetsATwinToo: "the cache should know the blocks|takes that one, so that nothing is stored twice|found were",
    HitLeavesNothingToCompute: "none is left to compute",
    FindTakesReferences: "looking a text up must change nothing",
    FindsOnlyWhatIsInUse: "nobody has reused them; found were|does not hold the K and V of the prefix",
    AdoptTakesNoReferences: r"block-table entries name block \d+, but its reference count is",
    PublishesPartFullBlocks: "the cache should know the blocks",
    StoresEqualTextsTwice: "takes that one, so that nothing is stored twice",
    DuplicateIsNeverGivenBack: "but its reference count is|publishing takes nothing out of the free queue",
    ResetForgetsNothing: "the cache should know the blocks",
    RevivedStaysInTheQueue: "the free queue is|publishing takes nothing out of the free queue",
    RevivedIsForgotten: "the cache should know the blocks",
    RevivesWhatIsInUse: r"reviving block \d+, which is in use, must raise BlockError",
    ReusesTheLatestFirst: "first in the free queue, should have been taken",
    FreesHeadFirst: "the tail of a text should be reused before its head",
    ForkOfTheSameKeys: "the cache should know the blocks|takes that one, so that nothing is stored twice",
    MoveKeepsTheOldBlocks: "but its reference count is",
    MovesSharedBlocksAgain: "should have been moved, each once|which went to|blocks wanted",
    MoveMixesBlocksUp: "which went to",
}
UNTIL_IT_FAILS = settings(
    programs(500, num_steps=30), derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False
)


def broken(mutant, audited):
    parts = {BlockPool: "Pool", BlockTable: "Table", PrefixCache: "Cache"}
    [part] = [name for original, name in parts.items() if issubclass(mutant, original)]
    return machine(**{part: mutant}, audited=audited)


def marks(mutant):
    return pytest.mark.slow if mutant is FindsOnlyWhatIsInUse else ()  # few programs show it


@pytest.mark.parametrize("mutant", [pytest.param(each, marks=marks(each), id=each.__name__) for each in MUTANTS])
def test_the_machine_catches_it(mutant):
    with pytest.raises((AssertionError, BlockError, OutOfBlocksError), match=MUTANTS[mutant]):
        run(broken(mutant, audited=True), settings=UNTIL_IT_FAILS)


CORRUPTING = [
    EveryKeyIsTheSame,
    KeyAddsTokensUp,
    KeyForgetsItsParent,
    SaltIsIgnored,
    ReusedBlocksStayKnown,
    MoveMixesBlocksUp,
]


@pytest.mark.parametrize("mutant", CORRUPTING, ids=lambda mutant: mutant.__name__)
def test_reading_the_slots_back_is_enough_to_catch_what_hands_out_the_wrong_text(mutant):
    """With every look at counts, queues and copies switched off: only what a table reads gives the bug away."""
    with pytest.raises(AssertionError, match=r"another text's K and V|should find the K and V of the prefix"):
        run(broken(mutant, audited=False), settings=UNTIL_IT_FAILS)
