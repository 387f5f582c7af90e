"""What a BlockPool promises, one promise a test. Read the names from top to bottom: they are its manual."""

import pytest

from minipage.errors import BlockError, ConfigurationError, IntegrityError, OutOfBlocksError
from minipage.memory import BlockPool


def state(pool):
    """All that can be seen of a pool from outside, to show that a failed operation changed nothing."""
    return pool.free_queue, [pool.ref_count(block) for block in range(pool.num_blocks)], pool.num_free, pool.num_used


# ---- allocating and freeing ------------------------------------------------------------------------------------------


def test_a_new_pool_is_all_free_and_its_queue_begins_with_block_0():
    pool = BlockPool(num_blocks=3, block_size=4)
    assert (pool.num_blocks, pool.block_size) == (3, 4)
    assert state(pool) == ((0, 1, 2), [0, 0, 0], 3, 0)


def test_a_block_holds_16_tokens_unless_told_otherwise():
    assert BlockPool(num_blocks=1).block_size == 16


def test_allocate_takes_the_block_at_the_front_of_the_free_queue():
    pool = BlockPool(num_blocks=3, block_size=4)
    assert [pool.allocate(), pool.allocate()] == [0, 1]
    assert state(pool) == ((2,), [1, 1, 0], 1, 2)


def test_allocate_many_takes_its_blocks_from_the_front_in_order():
    pool = BlockPool(num_blocks=5, block_size=4)
    assert pool.allocate_many(3) == [0, 1, 2]
    assert pool.allocate_many(2) == [3, 4]
    assert pool.free_queue == ()


def test_a_freed_block_goes_to_the_back_so_the_one_freed_longest_ago_is_reused_first():
    pool = BlockPool(num_blocks=4, block_size=4)
    pool.allocate_many(4)
    for block in (2, 0, 3):
        pool.free(block)
    assert pool.free_queue == (2, 0, 3), "the free queue should hold the blocks in the order in which they were freed"
    assert pool.allocate_many(3) == [2, 0, 3]


def test_a_freed_block_waits_behind_those_that_were_free_before_it():
    pool = BlockPool(num_blocks=3, block_size=4)
    pool.free(pool.allocate())
    assert pool.free_queue == (1, 2, 0)


def test_allocate_many_of_0_blocks_takes_nothing_even_from_an_empty_pool():
    pool = BlockPool(num_blocks=1, block_size=4)
    pool.allocate()
    assert pool.allocate_many(0) == []


def test_the_whole_pool_can_be_allocated_freed_and_allocated_again():
    pool = BlockPool(num_blocks=6, block_size=1)
    for _ in range(3):
        blocks = pool.allocate_many(6)
        assert sorted(blocks) == [0, 1, 2, 3, 4, 5], "every block should be handed out exactly once"
        for block in blocks:
            pool.free(block)
    assert pool.num_free == 6, "a block that nobody holds should be free: it leaked"


# ---- sharing ---------------------------------------------------------------------------------------------------------


def test_a_shared_block_stays_in_use_until_its_last_reference_is_freed():
    pool = BlockPool(num_blocks=2, block_size=4)
    block = pool.allocate()
    pool.share(block)
    pool.share(block)
    assert pool.ref_count(block) == 3
    for still_held in (2, 1):
        pool.free(block)
        assert pool.ref_count(block) == still_held
        assert block not in pool.free_queue, f"{still_held} tables still read this block: it must not be handed out"
    pool.free(block)
    assert state(pool) == ((1, 0), [0, 0], 2, 0)


def test_a_block_that_comes_back_from_the_free_queue_starts_again_with_one_reference():
    pool = BlockPool(num_blocks=1, block_size=4)
    pool.share(pool.allocate())
    pool.free(0)
    pool.free(0)
    assert pool.ref_count(pool.allocate()) == 1


# ---- reviving --------------------------------------------------------------------------------------------------------


def test_a_free_block_can_be_taken_back_from_anywhere_in_the_queue():
    pool = BlockPool(num_blocks=4, block_size=4)
    pool.revive(2)
    assert state(pool) == ((0, 1, 3), [0, 0, 1, 0], 3, 1)
    pool.free(2)
    assert pool.free_queue == (0, 1, 3, 2), "and has to wait for its turn again"


def test_a_block_in_use_cannot_be_revived_only_shared():
    pool = BlockPool(num_blocks=2, block_size=4)
    block = pool.allocate()
    with pytest.raises(BlockError, match=f"block {block} is in use"):
        pool.revive(block)
    assert state(pool) == ((1,), [1, 0], 1, 1)


def test_a_block_is_announced_when_it_gets_new_contents_but_not_when_it_is_revived_or_shared():
    pool, announced = BlockPool(num_blocks=4, block_size=4), []
    pool.on_evict = announced.append
    pool.revive(3)
    pool.share(3)
    pool.allocate_many(2)
    assert announced == [0, 1]
    with pytest.raises(OutOfBlocksError):
        pool.allocate_many(2)
    assert announced == [0, 1], "an allocation that failed has taken nothing"


# ---- mistakes: each raises a named error and changes nothing ---------------------------------------------------------


def test_allocating_from_an_exhausted_pool_raises():
    pool = BlockPool(num_blocks=1, block_size=4)
    pool.allocate()
    with pytest.raises(OutOfBlocksError):
        pool.allocate()
    assert state(pool) == ((), [1], 0, 1)


def test_allocate_many_takes_all_or_nothing():
    pool = BlockPool(num_blocks=5, block_size=4)
    pool.allocate_many(2)
    before = state(pool)
    with pytest.raises(OutOfBlocksError, match=r"4.*3 of 5"):  # the message counts: wanted, free, all
        pool.allocate_many(4)
    assert state(pool) == before, "an allocation that failed must not keep some of the blocks"
    assert pool.allocate_many(3) == [2, 3, 4]


def test_a_negative_number_of_blocks_cannot_be_allocated():
    pool = BlockPool(num_blocks=2, block_size=4)
    with pytest.raises(ConfigurationError):
        pool.allocate_many(-1)
    assert pool.num_free == 2


def test_freeing_a_block_twice_raises_and_does_not_queue_it_twice():
    pool = BlockPool(num_blocks=2, block_size=4)
    block = pool.allocate()
    pool.free(block)
    with pytest.raises(BlockError, match=f"{block}.*twice"):
        pool.free(block)
    assert state(pool) == ((1, 0), [0, 0], 2, 0), "a block queued twice would be given to two sequences"


def test_freeing_a_block_that_was_never_allocated_raises():
    pool = BlockPool(num_blocks=2, block_size=4)
    with pytest.raises(BlockError):
        pool.free(1)
    assert state(pool) == ((0, 1), [0, 0], 2, 0)


def test_a_free_block_cannot_be_shared_because_it_may_be_overwritten_at_any_time():
    pool = BlockPool(num_blocks=2, block_size=4)
    with pytest.raises(BlockError, match="1 is free"):
        pool.share(1)
    assert state(pool) == ((0, 1), [0, 0], 2, 0)


@pytest.mark.parametrize("unknown", [-1, 3, 99])
@pytest.mark.parametrize("operation", ["ref_count", "share", "free", "revive"])
def test_a_block_that_does_not_exist_is_named_in_the_error(operation, unknown):
    pool = BlockPool(num_blocks=3, block_size=4)
    pool.allocate_many(3)  # so that Python's own reading of -1, "the last one", would find a block in use
    with pytest.raises(BlockError, match=f"{unknown}"):
        getattr(pool, operation)(unknown)
    assert state(pool) == ((), [1, 1, 1], 0, 3)


@pytest.mark.parametrize("value", [0, -1, True, False, 2.0, 1.5, "4", None], ids=repr)
@pytest.mark.parametrize("name", ["num_blocks", "block_size"])
def test_a_pool_is_made_of_whole_numbers_of_at_least_1(name, value):
    with pytest.raises(ConfigurationError, match=f"{name}.*{value!r}"):
        BlockPool(**{"num_blocks": 4, "block_size": 4, name: value})


def test_the_smallest_pool_has_one_block_of_one_token():
    assert BlockPool(num_blocks=1, block_size=1).allocate() == 0


# ---- check_integrity: the auditor ------------------------------------------------------------------------------------


def test_check_integrity_is_silent_when_counts_queue_and_tables_agree():
    pool = BlockPool(num_blocks=4, block_size=4)
    pool.check_integrity([])
    first, second = pool.allocate_many(2)
    pool.share(first)
    pool.check_integrity([[first, second], [first]])
    pool.check_integrity(iter(table) for table in ([first], [first, second]))  # any iterables, in any order


def test_check_integrity_finds_a_leak_a_block_in_use_that_no_table_names():
    pool = BlockPool(num_blocks=4, block_size=4)
    kept, lost = pool.allocate_many(2)
    with pytest.raises(IntegrityError, match=f"block {lost} .*leak"):
        pool.check_integrity([[kept]])


def test_check_integrity_finds_a_reference_that_was_counted_but_never_dropped():
    pool = BlockPool(num_blocks=4, block_size=4)
    block = pool.allocate()
    pool.share(block)
    with pytest.raises(IntegrityError, match=f"block {block} .*2.* 1 "):
        pool.check_integrity([[block]])


def test_check_integrity_finds_a_block_in_two_tables_that_was_counted_once():
    pool = BlockPool(num_blocks=4, block_size=4)
    block = pool.allocate()
    with pytest.raises(IntegrityError, match=f"block {block} .*1.* 2 "):
        pool.check_integrity([[block], [block]])


def test_check_integrity_counts_a_block_named_twice_by_one_table_as_two_references():
    pool = BlockPool(num_blocks=4, block_size=4)
    block = pool.allocate()
    with pytest.raises(IntegrityError):
        pool.check_integrity([[block, block]])


def test_check_integrity_finds_a_block_that_is_both_free_and_used():
    pool = BlockPool(num_blocks=4, block_size=4)
    table = pool.allocate_many(2)
    pool.free(table[1])  # behind the table's back
    with pytest.raises(IntegrityError, match=f"block {table[1]} "):
        pool.check_integrity([table])


@pytest.mark.parametrize("unknown", [-1, 4])
def test_check_integrity_finds_a_table_that_names_a_block_outside_the_pool(unknown):
    pool = BlockPool(num_blocks=4, block_size=4)
    with pytest.raises(IntegrityError, match=f"{unknown}"):
        pool.check_integrity([[unknown]])


def test_check_integrity_finds_a_pool_that_forgets_to_count_a_share():
    class Uncounted(BlockPool):
        def share(self, block):
            pass

    pool = Uncounted(num_blocks=2, block_size=4)
    block = pool.allocate()
    pool.share(block)
    with pytest.raises(IntegrityError):
        pool.check_integrity([[block], [block]])


def test_check_integrity_finds_a_pool_that_never_takes_blocks_back():
    class Hoarder(BlockPool):
        def free(self, block):
            pass

    pool = Hoarder(num_blocks=2, block_size=4)
    pool.free(pool.allocate())
    with pytest.raises(IntegrityError, match="leak"):
        pool.check_integrity([])
