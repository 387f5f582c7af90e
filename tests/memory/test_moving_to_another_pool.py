"""BlockTable.move_to: how a sequence is swapped out of the KV cache, and back in."""

from minipage.memory import BlockCopy, BlockPool, BlockTable


def table_of(pool, num_tokens):
    table = BlockTable(pool)
    table.append(num_tokens)
    return table


def test_a_table_moves_to_another_pool_with_its_tokens_and_says_what_to_copy():
    pool, swap_pool = BlockPool(num_blocks=4, block_size=4), BlockPool(num_blocks=4, block_size=4)
    swap_pool.allocate()  # somebody else's
    table, moved = table_of(pool, 6), {}
    table.move_to(swap_pool, moved)
    assert (list(table), table.num_tokens, moved) == ([1, 2], 6, {0: 1, 1: 2})
    assert (pool.num_free, swap_pool.num_free) == (4, 1)
    assert table.slot_mapping(3, 6) == [1 * 4 + 3, 2 * 4, 2 * 4 + 1]


def test_a_shared_block_moves_once_and_is_shared_in_its_new_place():
    pool, swap_pool = BlockPool(num_blocks=6, block_size=4), BlockPool(num_blocks=3, block_size=4)
    parent = table_of(pool, 8)
    child = parent.fork()
    child.append(1)
    moved = {}
    for table in (parent, child):
        table.move_to(swap_pool, moved)
    assert (list(parent), list(child), moved) == ([0, 1], [0, 1, 2], {0: 0, 1: 1, 2: 2})
    assert [swap_pool.ref_count(block) for block in (0, 1, 2)] == [2, 2, 1]
    swap_pool.check_integrity([parent, child])
    pool.check_integrity([])


def test_one_who_stays_keeps_the_block():
    pool, swap_pool = BlockPool(num_blocks=6, block_size=4), BlockPool(num_blocks=3, block_size=4)
    parent = table_of(pool, 6)
    child = parent.fork()
    child.move_to(swap_pool, {})
    assert (list(parent), list(child)) == ([0, 1], [0, 1])
    assert parent.append(1) == [], "the child reads its own copy now: nothing to copy on write"
    pool.check_integrity([parent])
    swap_pool.check_integrity([child])


def test_out_and_back_again_a_part_full_block_is_still_copied_on_write():
    pool, swap_pool = BlockPool(num_blocks=6, block_size=4), BlockPool(num_blocks=3, block_size=4)
    parent = table_of(pool, 6)
    child = parent.fork()
    for destination in (swap_pool, pool):
        moved = {}
        for table in (parent, child):
            table.move_to(destination, moved)
    assert list(parent) == list(child) == [2, 3]
    assert parent.append(1) == [BlockCopy(source=3, destination=4)]
    assert child.append(1) == []


def test_moving_gives_the_last_block_back_first_too():
    pool = BlockPool(num_blocks=3, block_size=4)
    table = table_of(pool, 12)
    table.move_to(BlockPool(num_blocks=3, block_size=4), {})
    assert pool.free_queue == (2, 1, 0), "what is swapped out can be found by its text until its blocks are reused"
