"""What a BlockTable promises, one promise a test: growing, forking, copying on write, and giving everything back."""

import pytest

from minipage.errors import ConfigurationError, OutOfBlocksError
from minipage.memory import BlockCopy, BlockPool, BlockTable, blocks_needed


def table_of(pool, num_tokens):
    table = BlockTable(pool)
    table.append(num_tokens)
    return table


def state(pool, *tables):
    """All that can be seen from outside, to show that a failed operation changed nothing."""
    counts = [pool.ref_count(block) for block in range(pool.num_blocks)]
    return pool.free_queue, counts, [(list(table), table.num_tokens) for table in tables]


# ---- how many blocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "block_size", "expected"),
    [(0, 4, 0), (1, 4, 1), (3, 4, 1), (4, 4, 1), (5, 4, 2), (8, 4, 2), (9, 4, 3), (0, 1, 0), (1, 1, 1), (7, 1, 7)],
)
def test_blocks_needed_counts_the_last_block_even_if_it_is_part_empty(num_tokens, block_size, expected):
    assert blocks_needed(num_tokens, block_size) == expected


def test_a_new_table_holds_nothing():
    pool = BlockPool(num_blocks=2, block_size=4)
    assert state(pool, BlockTable(pool)) == ((0, 1), [0, 0], [([], 0)])


def test_a_table_takes_a_block_only_when_a_token_needs_it():
    """A block is taken for its first token (0, 4, 8), not when the one before it gets full."""
    table = BlockTable(BlockPool(num_blocks=3, block_size=4))
    lengths = []
    for _ in range(9):
        table.append(1)
        lengths.append(len(table))
    assert lengths == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_appending_many_tokens_at_once_ends_like_appending_them_one_by_one():
    pool = BlockPool(num_blocks=6, block_size=4)
    at_once, one_by_one = table_of(pool, 9), BlockTable(pool)
    for _ in range(9):
        one_by_one.append(1)
    assert (len(at_once), at_once.num_tokens) == (len(one_by_one), one_by_one.num_tokens) == (3, 9)


def test_blocks_to_allocate_foretells_what_append_takes():
    table = table_of(BlockPool(num_blocks=9, block_size=4), 3)
    assert [table.blocks_to_allocate(n) for n in (0, 1, 2, 5, 6)] == [0, 0, 1, 1, 2]


def test_appending_0_tokens_takes_nothing_and_copies_nothing():
    pool = BlockPool(num_blocks=1, block_size=4)
    table = table_of(pool, 3)
    twin = table.fork()  # the last block is part full and shared, and the pool is dry: any write would need a block
    before = state(pool, table, twin)
    assert table.append(0) == []
    assert state(pool, table, twin) == before


# ---- slots -----------------------------------------------------------------------------------------------------------


def test_slots_follow_the_blocks_wherever_they_are():
    """The picture at the top of block_table.py: `To be or not | to be that i | s the` in blocks 7, 1 and 3."""
    pool = BlockPool(num_blocks=8, block_size=4)
    pool.allocate_many(8)
    for block in (7, 1, 3):
        pool.free(block)
    table = table_of(pool, 10)
    assert list(table) == [7, 1, 3]
    assert table.slot_mapping(0, 10) == [28, 29, 30, 31, 4, 5, 6, 7, 12, 13]
    assert table.slot_mapping(3, 5) == [31, 4], "a range may cross from one block to the next"
    assert table.slot_mapping(10, 10) == []


def test_with_block_size_1_a_slot_is_a_block():
    pool = BlockPool(num_blocks=4, block_size=1)
    table = table_of(pool, 3)
    assert table.slot_mapping(0, 3) == list(table) == [0, 1, 2]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 6), (5, 6), (3, 2)])
def test_tokens_without_a_slot_cannot_be_asked_for(start, stop):
    table = table_of(BlockPool(num_blocks=2, block_size=4), 5)  # the blocks have 8 slots, but only 5 hold a token
    with pytest.raises(ConfigurationError, match="5"):
        table.slot_mapping(start, stop)


# ---- fork and copy-on-write ------------------------------------------------------------------------------------------


def test_a_fork_shares_every_block_and_copies_none():
    pool = BlockPool(num_blocks=4, block_size=4)
    parent = table_of(pool, 6)
    child = parent.fork()
    assert (list(child), child.num_tokens) == (list(parent), 6) == ([0, 1], 6)
    assert (pool.num_free, pool.ref_count(0), pool.ref_count(1)) == (2, 2, 2)


def test_a_fork_of_an_empty_table_is_an_empty_table():
    pool = BlockPool(num_blocks=1, block_size=4)
    assert state(pool, BlockTable(pool).fork()) == ((0,), [0], [([], 0)])


def test_the_first_write_into_a_shared_block_goes_to_a_copy():
    pool = BlockPool(num_blocks=4, block_size=4)
    parent = table_of(pool, 6)  # blocks 0 (full) and 1 (half full)
    child = parent.fork()
    assert child.append(1) == [BlockCopy(source=1, destination=2)]
    assert (list(parent), list(child)) == ([0, 1], [0, 2])
    assert [pool.ref_count(block) for block in (0, 1, 2)] == [2, 1, 1], "the copy replaces the child's old reference"
    pool.check_integrity([parent, child])


def test_the_parent_is_a_sharer_like_any_other():
    pool = BlockPool(num_blocks=4, block_size=4)
    parent = table_of(pool, 2)
    child = parent.fork()
    assert parent.append(1) == [BlockCopy(0, 1)]
    assert (list(parent), list(child)) == ([1], [0])


def test_the_last_sharer_writes_in_place():
    pool = BlockPool(num_blocks=4, block_size=4)
    first = table_of(pool, 2)
    second = first.fork()
    third = second.fork()
    assert first.append(1) == [BlockCopy(0, 1)]
    assert third.append(1) == [BlockCopy(0, 2)]
    assert second.append(1) == [], "nobody else reads block 0 any more: no need to copy it"
    assert [list(table) for table in (first, second, third)] == [[1], [0], [2]]


def test_when_the_other_sharer_is_freed_there_is_nothing_to_copy():
    pool = BlockPool(num_blocks=2, block_size=4)
    parent = table_of(pool, 2)
    child = parent.fork()
    parent.free()
    assert child.append(1) == []
    assert list(child) == [0]


def test_a_full_shared_block_is_never_copied_because_nobody_will_write_into_it():
    pool = BlockPool(num_blocks=3, block_size=4)
    parent = table_of(pool, 4)
    child = parent.fork()
    assert (child.append(1), parent.append(1)) == ([], [])
    assert (list(parent), list(child)) == ([0, 2], [0, 1])
    pool.check_integrity([parent, child])


def test_with_block_size_1_every_block_is_full_so_nothing_is_ever_copied():
    pool = BlockPool(num_blocks=8, block_size=1)
    parent = table_of(pool, 3)
    child = parent.fork()
    assert (child.append(2), parent.append(1)) == ([], [])
    assert (list(parent), list(child)) == ([0, 1, 2, 5], [0, 1, 2, 3, 4])


def test_one_append_can_copy_the_shared_block_and_take_new_ones():
    pool = BlockPool(num_blocks=8, block_size=4)
    child = table_of(pool, 6).fork()
    assert child.blocks_to_allocate(7) == 3  # a copy of block 1, and two more for tokens 8 to 12
    assert child.append(7) == [BlockCopy(1, 2)]
    assert list(child) == [0, 2, 3, 4]


# ---- a failed append changes nothing ---------------------------------------------------------------------------------


def test_an_append_that_does_not_fit_changes_nothing():
    pool = BlockPool(num_blocks=3, block_size=4)
    table = table_of(pool, 3)
    before = state(pool, table)
    with pytest.raises(OutOfBlocksError):
        table.append(10)  # 13 tokens: three blocks more, two are free
    assert state(pool, table) == before, "an append that failed must leave the table and the pool as they were"
    table.append(9)  # 12 tokens fit exactly
    assert list(table) == [0, 1, 2]


def test_an_append_without_a_block_for_its_copy_changes_nothing():
    pool = BlockPool(num_blocks=1, block_size=4)
    parent = table_of(pool, 2)
    child = parent.fork()
    before = state(pool, parent, child)
    with pytest.raises(OutOfBlocksError):
        child.append(1)
    assert state(pool, parent, child) == before


def test_an_append_with_a_block_for_its_copy_but_not_for_the_rest_changes_nothing():
    pool = BlockPool(num_blocks=2, block_size=4)
    parent = table_of(pool, 2)
    child = parent.fork()
    before = state(pool, parent, child)
    with pytest.raises(OutOfBlocksError):
        child.append(3)  # 5 tokens: a copy of the shared block, and a second block
    assert state(pool, parent, child) == before


def test_a_negative_number_of_tokens_cannot_be_appended():
    pool = BlockPool(num_blocks=2, block_size=4)
    table = table_of(pool, 6)
    with pytest.raises(ConfigurationError):
        table.append(-2)
    assert (len(table), table.num_tokens) == (2, 6)


# ---- giving everything back ------------------------------------------------------------------------------------------


def test_free_gives_the_last_block_back_first_so_the_beginning_of_a_text_is_reused_last():
    pool = BlockPool(num_blocks=3, block_size=4)
    table = table_of(pool, 12)
    table.free()
    assert pool.free_queue == (2, 1, 0)


def test_a_freed_table_is_empty_can_be_freed_again_and_can_be_used_again():
    pool = BlockPool(num_blocks=2, block_size=4)
    table = table_of(pool, 5)
    table.free()
    table.free()
    assert (list(table), table.num_tokens, pool.num_free) == ([], 0, 2)
    table.append(1)
    assert len(table) == 1


def test_freeing_one_sharer_leaves_the_other_untouched():
    pool = BlockPool(num_blocks=2, block_size=4)
    parent = table_of(pool, 6)
    child = parent.fork()
    parent.free()
    assert (list(child), child.num_tokens, pool.num_free) == ([0, 1], 6, 0)
    child.free()
    assert pool.num_free == 2, "after the last sharer is gone nothing may stay in use: a block leaked"
