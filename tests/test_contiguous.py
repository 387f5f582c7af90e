"""The allocators that paging replaced: what they promise, and where every slot of theirs goes.

The buddy allocator is compared with a plain dictionary that says for each slot who owns it:

    owners = {0: None, 1: None, 2: "A", 3: "A", ...}

A chunk of 2**k slots can be had exactly if that many slots, from a multiple of 2**k on, belong to nobody. So the
dictionary knows when an allocation must work and when it must fail, whatever the allocator has split and joined before.
"""

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.errors import BlockError, ConfigurationError, IntegrityError, OutOfBlocksError
from minipage.memory import BlockPool, BlockTable
from minipage.simulate.baselines import (
    BuddyAllocator,
    ContiguousTable,
    next_power_of_two,
    reserve_max,
    reserve_oracle,
    reserve_pow2,
    slot_usage,
)

RULES = [reserve_max, reserve_pow2, reserve_oracle]
NO_WHOLE_NUMBERS = pytest.mark.parametrize("value", [0, -1, True, 2.0, "4", None], ids=repr)


def starts_of(allocator, size, count):
    return [allocator.allocate(size) for _ in range(count)]


# ---- the buddy allocator ---------------------------------------------------------------------------------------------


def test_a_chunk_is_split_down_to_the_smallest_power_of_two_that_holds_what_is_wanted():
    allocator = BuddyAllocator(64)
    assert allocator.allocate(5) == 0
    assert allocator.num_free == 64 - 8


def test_equal_chunks_follow_each_other_and_fill_everything():
    allocator = BuddyAllocator(64)
    assert sorted(starts_of(allocator, 16, 4)) == [0, 16, 32, 48]
    assert allocator.num_free == 0


def test_freed_buddies_are_joined_until_the_whole_memory_is_one_chunk_again():
    allocator = BuddyAllocator(64)
    for start in starts_of(allocator, 1, 64):
        allocator.free(start)
    assert allocator.allocate(64) == 0


def test_two_free_neighbours_that_are_no_buddies_stay_apart():
    allocator = BuddyAllocator(16)
    chunks = sorted(starts_of(allocator, 4, 4))
    allocator.free(chunks[1])
    allocator.free(chunks[2])  # slots 4 to 11: eight in a row, but not beginning at a multiple of eight
    with pytest.raises(OutOfBlocksError):
        allocator.allocate(8)


def test_free_slots_that_lie_apart_are_of_no_use_to_a_large_request():
    """External fragmentation, in one test: half of the memory is free, and two slots in a row cannot be had."""
    allocator = BuddyAllocator(16)
    for start in starts_of(allocator, 1, 16)[::2]:
        allocator.free(start)
    assert allocator.num_free == 8
    with pytest.raises(OutOfBlocksError, match="8 of 16 slots are free, but not 2 of them together"):
        allocator.allocate(2)


def test_a_memory_that_is_no_power_of_two_has_a_chunk_for_each_of_its_binary_digits():
    allocator = BuddyAllocator(22)
    assert [allocator.allocate(size) for size in (16, 4, 2)] == [0, 16, 20]
    assert allocator.num_free == 0


def test_the_papers_memory_has_room_for_seven_sequences_of_2048():
    allocator = BuddyAllocator(15_728)
    starts_of(allocator, 2048, 7)
    with pytest.raises(OutOfBlocksError):
        allocator.allocate(2048)
    assert allocator.num_free == 1392, "8.9 % of the memory, the external waste that the paper gives"


def test_a_failed_allocation_changes_nothing():
    allocator = BuddyAllocator(12)
    for size in (9, 13, 10**9):
        with pytest.raises(OutOfBlocksError):
            allocator.allocate(size)
    assert [allocator.allocate(8), allocator.allocate(4)] == [0, 8]


def test_a_chunk_cannot_be_freed_twice():
    allocator = BuddyAllocator(8)
    start = allocator.allocate(2)
    allocator.free(start)
    with pytest.raises(BlockError, match=f"slot {start}: it was freed already"):
        allocator.free(start)
    allocator.check_integrity([])


@pytest.mark.parametrize("start", [-1, 1, 3, 8, 99])
def test_only_the_first_slot_of_a_chunk_in_use_can_be_freed(start):
    allocator = BuddyAllocator(8)
    chunk = allocator.allocate(4)
    with pytest.raises(BlockError, match=f"{start}"):
        allocator.free(start)
    allocator.check_integrity([chunk])


@NO_WHOLE_NUMBERS
def test_memories_and_chunks_have_whole_numbers_of_slots(value):
    with pytest.raises(ConfigurationError, match=f"num_slots is {value!r}"):
        BuddyAllocator(value)
    allocator = BuddyAllocator(4)
    with pytest.raises(ConfigurationError, match=f"size is {value!r}"):
        allocator.allocate(value)
    assert allocator.num_free == 4


def test_check_integrity_names_a_chunk_that_nobody_holds_or_two_do_or_that_is_free():
    allocator = BuddyAllocator(8)
    start = allocator.allocate(2)
    allocator.check_integrity([start])
    for holders, words in [([], "in use, but 0"), ([start, start], "in use, but 2"), ([start, 4], "not in use, but 1")]:
        with pytest.raises(IntegrityError, match=words):
            allocator.check_integrity(holders)


# ---- the same, in random programs ------------------------------------------------------------------------------------


class BuddyMachine(RuleBasedStateMachine):
    Allocator = BuddyAllocator
    chunks = Bundle("chunks")

    @initialize(num_slots=st.integers(1, 40))
    def start(self, num_slots):
        self.allocator = self.Allocator(num_slots)
        self.owners = dict.fromkeys(range(num_slots))  # slot -> first slot of its chunk, or None
        self.freed = set()

    def can_be_had(self, size):
        places = range(0, len(self.owners) - size + 1, size)
        return any(all(self.owners[slot] is None for slot in range(place, place + size)) for place in places)

    @rule(target=chunks, wanted=st.one_of(st.integers(1, 4), st.integers(1, 40)), count=st.integers(1, 4))
    def allocate_some(self, wanted, count):
        starts = [self.allocate(wanted) for _ in range(count)]
        return multiple(*(start for start in starts if start is not None))

    def allocate(self, wanted):
        size = 1
        while size < wanted:
            size *= 2
        if not self.can_be_had(size):
            with pytest.raises(OutOfBlocksError):
                self.allocator.allocate(wanted)
            return None
        start = self.allocator.allocate(wanted)
        assert start % size == 0, f"a chunk of {size} slots begins at slot {start}"
        assert start + size <= len(self.owners), f"a chunk of {size} slots begins at slot {start}, beyond the memory"
        for slot in range(start, start + size):
            assert self.owners[slot] is None, f"slot {slot} was given to {start}, but {self.owners[slot]} owns it"
            self.owners[slot] = start
        self.freed.discard(start)
        return start

    @rule(start=consumes(chunks))
    def free(self, start):
        self.allocator.free(start)
        self.owners = {slot: None if owner == start else owner for slot, owner in self.owners.items()}
        self.freed.add(start)

    @rule()
    def free_again(self):
        for start in self.freed:
            with pytest.raises(BlockError):
                self.allocator.free(start)

    @invariant()
    def the_same_slots_are_free(self):
        if hasattr(self, "owners"):
            assert self.allocator.num_free == sum(owner is None for owner in self.owners.values())
            self.allocator.check_integrity({owner for owner in self.owners.values() if owner is not None})

    def teardown(self):
        for start in {owner for owner in getattr(self, "owners", {}).values() if owner is not None}:
            self.allocator.free(start)


def machine(allocator_class):
    return type("BuddyMachine", (BuddyMachine,), {"Allocator": allocator_class})


def test_a_chunk_can_be_had_exactly_if_its_slots_belong_to_nobody():
    run(machine(BuddyAllocator), settings=settings(max_examples=100, stateful_step_count=30))


class NeverJoins(BuddyAllocator):
    def free(self, start):
        if start not in self._order:
            super().free(start)
        self._free[self._order.pop(start)][start] = None

    def check_integrity(self, starts):
        """Would notice at once. Here the dictionary has to."""


class JoinsNeighboursThatAreNoBuddies(BuddyAllocator):
    def free(self, start):
        order = self._order.get(start, 0)
        super().free(start)
        after = start + (1 << order)
        if start in self._free[order] and after in self._free[order]:
            del self._free[order][start], self._free[order][after]
            self._free[order + 1][start] = None

    def check_integrity(self, starts):
        """Would notice at once. Here the dictionary has to."""


class HandsOutTheUpperHalfTwice(BuddyAllocator):
    def allocate(self, size):
        start = super().allocate(size)
        order = self._order[start]
        if order > 0 and size == 1 << order:
            self._free[order - 1][start + (1 << order - 1)] = None
        return start


class RoundsDown(BuddyAllocator):
    def allocate(self, size):
        return super().allocate(1 << (size.bit_length() - 1))


class FreesTwiceSilently(BuddyAllocator):
    def free(self, start):
        if start in self._order:
            super().free(start)


class ForgetsTheLastDigit(BuddyAllocator):
    def __init__(self, num_slots):
        super().__init__(num_slots)
        self._free[0].clear()


@pytest.mark.parametrize(
    "mutant",
    [
        NeverJoins,
        pytest.param(JoinsNeighboursThatAreNoBuddies, marks=pytest.mark.slow),  # few programs show it
        HandsOutTheUpperHalfTwice,
        RoundsDown,
        FreesTwiceSilently,
        ForgetsTheLastDigit,
    ],
    ids=lambda mutant: mutant.__name__,
)
def test_random_programs_notice_a_broken_allocator(mutant):
    until_it_fails = settings(
        max_examples=2000,
        stateful_step_count=30,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises((AssertionError, OutOfBlocksError, IntegrityError, BlockError, pytest.fail.Exception)):
        run(machine(mutant), settings=until_it_fails)


@pytest.mark.parametrize(
    ("mutant", "num_slots", "sizes", "freed", "words"),
    [
        (NeverJoins, 4, [2, 2], [0, 2], r"slots \[0, 2\] .* are buddies"),
        (JoinsNeighboursThatAreNoBuddies, 4, [1, 1, 1, 1], [2, 1], r"slots \[1\] begin at no multiple of their size"),
        (HandsOutTheUpperHalfTwice, 4, [2], [], "slot 1 belongs to two chunks"),
        (ForgetsTheLastDigit, 5, [4], [], "slot 4 belongs to none"),
    ],
)
def test_check_integrity_notices_chunks_that_are_wrong(mutant, num_slots, sizes, freed, words):
    allocator = mutant(num_slots)
    held = {allocator.allocate(size) for size in sizes} - set(freed)
    for start in freed:
        allocator.free(start)
    with pytest.raises(IntegrityError, match=words):
        BuddyAllocator.check_integrity(allocator, held)


# ---- a request's place -----------------------------------------------------------------------------------------------


def test_a_table_takes_its_whole_place_with_the_first_token_and_never_moves():
    allocator = BuddyAllocator(64)
    other = allocator.allocate(16)
    table = ContiguousTable(allocator, num_reserved=20)
    assert (table.start, allocator.num_free) == (None, 48)
    table.append(3)
    assert (table.start, allocator.num_free) == (32, 16)
    table.append(17)
    assert table.slot_mapping(0, 20) == list(range(32, 52))
    assert table.slot_mapping(5, 7) == [37, 38]
    table.free()
    allocator.check_integrity([other])


def test_a_table_that_was_freed_is_empty_and_can_be_filled_again():
    allocator = BuddyAllocator(8)
    table = ContiguousTable(allocator, num_reserved=5)
    for _ in range(3):
        table.append(5)
        table.free()
        assert (table.num_tokens, table.start, allocator.num_free) == (0, None, 8)
    table.free()  # as with BlockTable, nothing is left to free
    assert allocator.num_free == 8


def test_what_lies_in_one_piece_cannot_grow_beyond_what_was_reserved():
    table = ContiguousTable(BuddyAllocator(64), num_reserved=5)
    table.append(4)
    with pytest.raises(OutOfBlocksError, match="6 tokens do not fit into the 5 slots"):
        table.append(2)  # although the chunk has 8 slots
    assert table.num_tokens == 4
    table.append(1)


def test_a_table_that_finds_no_place_has_not_changed():
    allocator = BuddyAllocator(8)
    first, second = ContiguousTable(allocator, 8), ContiguousTable(allocator, 1)
    first.append(1)
    with pytest.raises(OutOfBlocksError):
        second.append(1)
    assert (second.num_tokens, second.start) == (0, None)
    first.free()
    second.append(1)


def test_a_table_refuses_nonsense():
    allocator = BuddyAllocator(8)
    table = ContiguousTable(allocator, 4)
    with pytest.raises(ConfigurationError, match="-1"):
        table.append(-1)
    table.append(0)
    assert table.start is None, "no token, no place"
    table.append(2)
    for start, stop in [(-1, 1), (2, 1), (0, 3)]:
        with pytest.raises(ConfigurationError):
            table.slot_mapping(start, stop)


@NO_WHOLE_NUMBERS
def test_a_whole_number_of_slots_is_reserved(value):
    with pytest.raises(ConfigurationError, match=f"num_reserved is {value!r}"):
        ContiguousTable(BuddyAllocator(8), value)


# ---- how much to reserve ---------------------------------------------------------------------------------------------


def test_the_three_rules_on_the_papers_example_of_25_output_tokens():
    assert reserve_max(10, 25, 2048) == 2048
    assert reserve_pow2(10, 25, 2048) == 10 + 32
    assert reserve_oracle(10, 25, 2048) == 10 + 25


def test_no_rule_reserves_more_than_the_model_could_use():
    assert [rule(1000, 1040, 2048) for rule in RULES] == [2048, 2048, 2040]


@given(st.integers(1, 10**6))
def test_the_next_power_of_two_is_never_twice_too_large(n):
    power = next_power_of_two(n)
    assert bin(power).count("1") == 1
    assert n <= power < 2 * n


@given(st.integers(1, 1024), st.integers(1, 1024))
def test_every_rule_reserves_enough_and_the_better_informed_reserves_less(prompt, output):
    largest, guessed, true = (rule(prompt, output, 2048) for rule in RULES)
    assert 2048 == largest >= guessed >= true == prompt + output


# ---- where every slot goes -------------------------------------------------------------------------------------------


def test_the_picture_in_the_files_head():
    """A prompt of 4 tokens and 4 of 6 output tokens, in a memory of 32 slots."""
    expected = {reserve_max: (8, 2, 22, 0), reserve_pow2: (8, 2, 2, 20), reserve_oracle: (8, 2, 0, 22)}
    for rule_, usage in expected.items():
        table = ContiguousTable(BuddyAllocator(32), rule_(4, 6, max_model_len=32))
        table.append(8)
        assert slot_usage(32, [(table, 10)]) == usage, rule_.__name__


def test_in_paged_memory_only_the_last_block_can_be_part_empty():
    pool = BlockPool(num_blocks=8, block_size=4)
    table = BlockTable(pool)
    table.append(5)
    assert slot_usage(32, [(table, 6)]) == (5, 1, 2, 24)  # two blocks: 5 tokens, 1 to come, 2 for nobody
    assert slot_usage(32, [(table, 60)]) == (5, 3, 0, 24)


def test_an_empty_memory_and_tables_without_tokens():
    assert slot_usage(32, []) == (0, 0, 0, 32)
    tables = [(ContiguousTable(BuddyAllocator(32), 8), 8), (BlockTable(BlockPool(8, 4)), 8)]
    assert slot_usage(32, tables) == (0, 0, 0, 32)


def test_a_request_cannot_be_longer_than_it_will_ever_be():
    table = ContiguousTable(BuddyAllocator(32), 8)
    table.append(5)
    with pytest.raises(ConfigurationError, match=r"4 tokens cannot have 5"):
        slot_usage(32, [(table, 4)])


REQUESTS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 30)), max_size=12)


def use_of_each_slot(num_slots, requests):
    """The same account, slot by slot: (slots held, tokens stored, final length) of each request -> how many of each."""
    uses = dict.fromkeys(range(num_slots), "external")
    for slots, num_tokens, final_len in requests:
        for i, slot in enumerate(slots):
            assert uses[slot] == "external", f"slot {slot} has two owners"
            uses[slot] = "tokens" if i < num_tokens else "reserved" if i < final_len else "internal"
    return tuple(list(uses.values()).count(use) for use in ("tokens", "reserved", "internal", "external"))


@given(rule=st.sampled_from(RULES), num_slots=st.integers(1, 400), requests=REQUESTS)
def test_contiguous_memory_is_accounted_for_to_the_last_slot(rule, num_slots, requests):
    allocator, tables, held = BuddyAllocator(num_slots), [], []
    for prompt, output, generated in requests:
        table = ContiguousTable(allocator, rule(prompt, output, 64))
        final_len = prompt + output
        try:
            table.append(min(prompt + generated, final_len))
        except OutOfBlocksError:
            continue
        tables.append((table, final_len))
        held.append((range(table.start, table.start + rule(prompt, output, 64)), table.num_tokens, final_len))
    usage = slot_usage(num_slots, tables)
    assert usage == use_of_each_slot(num_slots, held)
    assert sum(usage) == num_slots


@given(num_blocks=st.integers(1, 40), block_size=st.integers(1, 9), requests=REQUESTS)
def test_paged_memory_is_accounted_for_to_the_last_slot(num_blocks, block_size, requests):
    pool, tables, held = BlockPool(num_blocks, block_size), [], []
    for prompt, output, generated in requests:
        table, final_len = BlockTable(pool), prompt + output
        try:
            table.append(min(prompt + generated, final_len))
        except OutOfBlocksError:
            continue
        tables.append((table, final_len))
        slots = [block * block_size + offset for block in table for offset in range(block_size)]
        held.append((slots, table.num_tokens, final_len))
    usage = slot_usage(num_blocks * block_size, tables)
    assert usage == use_of_each_slot(num_blocks * block_size, held)
    assert sum(usage) == num_blocks * block_size
