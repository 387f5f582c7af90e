"""What PartialPrefixCache promises beyond PrefixCache: beginnings of blocks are found, copied, and never written over.

The random programs are those of prefix_machine.py, with a second dictionary for the beginnings of blocks.
"""

from itertools import islice

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule
from hypothesis.stateful import run_state_machine_as_test as run
from memory.test_prefix_machine import programs

from benchmarks.partial_hits import hit_rate, prompts
from minipage.errors import ConfigurationError
from minipage.memory import BlockCopy, BlockPool, BlockTable
from minipage.memory.eviction import EVICTIONS
from minipage.memory.partial_cache import PartialPrefixCache
from minipage.promises.prefix_machine import PrefixMachine

TEXT = list(range(10, 20))  # two full blocks of four tokens, and two tokens more


def make(num_blocks=8, block_size=4, unit=1, eviction="lru"):
    pool = BlockPool(num_blocks, block_size, EVICTIONS[eviction])
    return pool, PartialPrefixCache(pool, unit)


def computed(cache, tokens, salt=""):
    table = BlockTable(cache.pool)
    table.append(len(tokens))
    cache.publish(table, tokens, salt)
    return table


def adopted(cache, tokens, salt=""):
    """A table that begins with what is known, and the copies that it takes."""
    table = BlockTable(cache.pool)
    cache.adopt(table, *cache.find(tokens, salt))
    copies, cache.copies = cache.copies, []
    return table, copies


# ---- what is found


@pytest.mark.parametrize("unit", [1, 2, 4])
def test_a_text_is_found_as_far_as_it_is_the_same_in_steps_of_the_unit(unit):
    _, cache = make(unit=unit)
    computed(cache, TEXT)
    for same in range(len(TEXT) + 1):
        table, copies = adopted(cache, [*TEXT[:same], 1, 2])
        assert table.num_tokens == same // unit * unit
        assert len(copies) == (table.num_tokens % 4 > 0), "a whole block is shared, the beginning of one copied"
        table.free()


@pytest.mark.parametrize("unit", [1, 2, 4])
def test_at_least_one_token_is_left_to_compute(unit):
    _, cache = make(unit=unit)
    computed(cache, TEXT)
    for length in range(1, len(TEXT) + 1):
        table, _ = adopted(cache, TEXT[:length])
        assert table.num_tokens == (length - 1) // unit * unit
        table.free()


def test_a_block_that_is_not_full_yet_is_found_as_far_as_it_is_written_and_its_owner_goes_on():
    pool, cache = make()
    owner = computed(cache, TEXT[:6])
    assert cache.num_findable(owner.blocks[1]) == 2
    guest, [copy] = adopted(cache, TEXT)
    assert guest.num_tokens == 6 and copy == BlockCopy(owner.blocks[1], guest.blocks[1])
    assert owner.append(1) == [] and guest.append(1) == [], "each has a block of its own"
    pool.check_integrity([owner, guest])
    cache.publish(owner, TEXT[:7])
    assert cache.num_findable(owner.blocks[1]) == 3


def test_drafts_beyond_the_tokens_of_a_table_are_not_published():
    _, cache = make()
    table = BlockTable(cache.pool)
    table.append(9)
    table.num_tokens = 5  # as Speculation does while it publishes
    cache.publish(table, TEXT)
    assert adopted(cache, TEXT)[0].num_tokens == 5


def test_salts_are_apart():
    _, cache = make()
    computed(cache, TEXT, "Alice")
    assert adopted(cache, TEXT, "Bob")[0].num_tokens == 0
    assert adopted(cache, TEXT, "Alice")[0].num_tokens == 9


def test_of_equal_beginnings_the_newest_is_found_and_another_one_only_while_it_is_there():
    pool, cache = make()
    first = computed(cache, [*TEXT[:6], 1, 2])
    second = computed(cache, [*TEXT[:6], 3, 4])
    _, [copy] = adopted(cache, [*TEXT[:6], 5])
    assert copy.source == second.blocks[1]
    assert cache.num_findable(first.blocks[1]) == 4, "all of it can be found"
    pool.check_integrity([first, second, [copy.destination, second.blocks[0]]])


def test_hit_rates_of_whole_blocks_fall_as_blocks_grow_and_those_of_units_do_not():
    few = list(islice(prompts(), 30))
    assert hit_rate(few, 16) > hit_rate(few, 64) > hit_rate(few, 256) == 0
    assert hit_rate(few, 16) == hit_rate(few, 64, 16) == hit_rate(few, 256, 16)


# ---- what is evicted


def test_what_was_evicted_is_not_found():
    pool, cache = make(num_blocks=3)
    computed(cache, TEXT).free()
    pool.allocate()  # the last block, which was freed first
    assert adopted(cache, TEXT)[0].num_tokens == 8


def test_a_block_that_a_beginning_was_copied_from_is_evicted_later():
    pool, cache = make(num_blocks=4)
    computed(cache, TEXT[:6]).free()
    [source] = [copy.source for copy in adopted(cache, [*TEXT[:5], 0])[1]]
    assert pool.free_queue[-1] == source


def test_the_last_free_block_may_be_the_one_that_is_copied_from():
    pool, cache = make(num_blocks=2)
    computed(cache, TEXT[:6]).free()
    table, [copy] = adopted(cache, [*TEXT[:5], 0])
    assert copy.source == copy.destination == table.blocks[1]
    assert table.num_tokens == 5 and pool.num_free == 0
    assert cache.num_findable(copy.source) == 0, "it will be written on"


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_block_is_known_while_a_beginning_of_it_can_be_found(eviction):
    pool, cache = make(num_blocks=4, eviction=eviction)
    table = computed(cache, TEXT[:6])
    block = table.blocks[1]
    assert block in cache and pool.is_known(block)
    table.free()
    cache.forget(block)
    assert block not in cache and not pool.is_known(block)
    assert adopted(cache, TEXT)[0].num_tokens == 4


def test_reset_forgets_beginnings_too():
    _, cache = make()
    table = computed(cache, TEXT[:6])
    cache.reset()
    cache.publish(table, TEXT[:6])
    assert adopted(cache, TEXT)[0].num_tokens == 0


@pytest.mark.parametrize("unit", [0, -1, 3, 8, 1.5, True, "2", None])
def test_the_unit_is_a_whole_number_that_divides_the_block_size(unit):
    with pytest.raises(ConfigurationError, match="prefix_match_unit"):
        PartialPrefixCache(BlockPool(4, 4), unit)


# ---- random programs


class PartialMachine(PrefixMachine):
    """prefix_machine.py, in which blocks are also known by their beginnings."""

    Cache = PartialPrefixCache

    @initialize(
        target=PrefixMachine.names, num_blocks=st.integers(3, 12), at_once=st.booleans(),
        sizes=st.sampled_from([(4, 1), (6, 2), (4, 2), (3, 1), (2, 1), (2, 2), (6, 3)]),
    )  # fmt: skip
    def start(self, num_blocks, at_once, sizes):
        block_size, self.unit = sizes
        self.set_up(num_blocks, block_size)
        self.publishes_at_once = at_once
        return self.new_tables([([0, 0, 1, 0, 1], ""), ([0, 0], "")])

    def set_up(self, num_blocks, block_size):
        made, self.Cache = self.Cache, lambda pool: made(pool, self.unit)
        super().set_up(num_blocks, block_size)
        self.known_parts = {}  # prefix that ends inside a block -> the newest block that it ends in
        self.num_parts = {}  # block -> how many of its beginnings were published

    def admit(self, tokens, salt):
        size, unit, before = self.block_size, self.unit, self.observed()
        blocks, hashes = self.cache.find(tokens, salt)
        self.audit(self.observed() == before, "looking a text up must change nothing")
        self.check_what_was_found(blocks, (salt, *tokens))
        start = len(blocks) * size
        inside = [n for n in range(unit, size, unit) if (salt, *tokens)[: 1 + start + n] in self.known_parts]
        longest = max((n for n in inside if start + n < len(tokens)), default=0)
        if -(-len(tokens) // size) - len(blocks) + len(set(blocks) & self.free_blocks()) > len(self.free_blocks()):
            return []
        table = self.Table(self.pool)
        self.cache.adopt(table, blocks, hashes)
        copies, self.cache.copies = self.cache.copies, []
        num_tokens = start + longest
        self.audit(
            table.num_tokens == num_tokens and len(copies) == (longest > 0),
            f"{num_tokens} tokens of {tokens} are known, {longest} of them in a part of a block; the table has "
            f"{table.num_tokens}, and {len(copies)} copies were ordered",
        )
        self.carry_out(copies, self.pool, self.pool)
        for _, block in copies:
            self.forgotten([block])
        return [self.add_table(table, tokens[num_tokens:], known=(salt, *tokens[:num_tokens]))]

    @rule(name=PrefixMachine.names)
    def publish(self, name):
        if self.home[name] is not self.pool or name not in self.num_published:
            return
        first = self.num_published[name]
        super().publish(name)
        whole, size, unit = self.texts[name], self.block_size, self.unit
        for i, block in list(enumerate(self.tables[name]))[first:]:
            written = min(len(whole) - 1 - i * size, size - 1)
            for n in range(self.num_parts.get(block, 0) + 1, written // unit + 1):
                self.known_parts[whole[: 1 + i * size + n * unit]] = block
                self.num_parts[block] = n

    def write(self, name, tokens):
        for token in tokens:
            slot = self.tables[name].slot_mapping(len(self.texts[name]) - 1, len(self.texts[name]))[0]
            block, offset = divmod(slot, self.block_size)
            if self.home[name] is self.pool:
                num_findable = self.cache.num_findable(block)
                assert offset >= num_findable, (
                    f"slot {offset} of block {block} is written, but {num_findable} are known"
                )
            super(PrefixMachine, self).write(name, [token])
        if self.publishes_at_once:
            self.publish(name)

    @rule()
    def reset(self):
        super().reset()
        self.known_parts, self.num_parts = {}, {}

    def handed_out(self, pool, blocks, expected):
        super().handed_out(pool, blocks, expected)
        if pool is self.pool:
            self.forgotten(blocks)

    def forgotten(self, blocks):
        self.known = {prefix: block for prefix, block in self.known.items() if block not in blocks}
        self.known_parts = {prefix: block for prefix, block in self.known_parts.items() if block not in blocks}
        for block in blocks:
            self.num_parts.pop(block, None)

    def audit_counts_and_free_queue(self, pool):
        known, self.known = self.known, {**self.known, **self.known_parts}
        super().audit_counts_and_free_queue(pool)
        self.known = known


def machine(**parts):
    return type("PartialMachine", (PartialMachine,), parts)


def test_nobody_is_given_another_texts_tokens():
    run(machine(), settings=settings(programs(30, num_steps=15), max_examples=30))


@pytest.mark.slow
def test_nobody_is_given_another_texts_tokens_in_longer_programs():
    run(machine(), settings=programs(1500, num_steps=60))


class FindsOneUnitTooMuch(PartialPrefixCache):
    def adopt(self, table, blocks, block_hashes):
        super().adopt(table, blocks, block_hashes)
        if len(block_hashes) > 1 + len(blocks):
            table.num_tokens = min(table.num_tokens + 1, len(table.blocks) * self.pool.block_size)


class SharesThePart(PartialPrefixCache):
    def adopt(self, table, blocks, block_hashes):
        super().adopt(table, blocks, block_hashes)
        for source, destination in self.copies:
            if self.pool.ref_count(source):
                self.pool.share(source)
                self.pool.free(destination)
                table.blocks[-1] = source
        self.copies = []


class NeverForgetsAPart(PartialPrefixCache):
    def forget(self, block):
        super(PartialPrefixCache, self).forget(block)


class KnowsAPartByItsOwnTokens(PartialPrefixCache):
    def _hashes(self, parent, token_ids):
        return super()._hashes(b"", token_ids)


@pytest.mark.parametrize(
    "mutant", [FindsOneUnitTooMuch, SharesThePart, NeverForgetsAPart, KnowsAPartByItsOwnTokens],
    ids=lambda mutant: mutant.__name__,
)  # fmt: skip
def test_the_machine_catches_it(mutant):
    until_it_fails = settings(
        programs(300, num_steps=20), derandomize=True, database=None, phases=[Phase.generate],
        report_multiple_bugs=False,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run(machine(Cache=mutant), settings=until_it_fails)
