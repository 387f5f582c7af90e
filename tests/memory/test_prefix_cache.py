"""What a PrefixCache promises, one promise a test: what is found, what is not, for how long, and who may see it."""

import pytest

from minipage.memory import BlockPool, BlockTable, PrefixCache

TEXT = [10, 11, 12, 13, 14, 15, 16]  # three full blocks of two tokens, and one token more


def make(num_blocks=8, block_size=2):
    pool = BlockPool(num_blocks, block_size)
    return pool, PrefixCache(pool)


def computed(cache, tokens, salt="", adopting=False):
    """A block table with all the tokens, written and published; it begins with what is known, if `adopting`."""
    table = BlockTable(cache.pool)
    if adopting:
        cache.adopt(table, *cache.find(tokens, salt))
    table.append(len(tokens) - table.num_tokens)
    cache.publish(table, tokens, salt)
    return table


def found(cache, tokens, salt=""):
    return cache.find(tokens, salt)[0]


# ---- what is found ---------------------------------------------------------------------------------------------------


def test_nothing_is_found_until_its_k_and_v_are_written_and_it_is_published():
    pool, cache = make()
    table = BlockTable(pool)
    table.append(6)
    assert found(cache, TEXT) == [] and 0 not in cache
    cache.publish(table, TEXT)
    assert found(cache, TEXT) == [0, 1, 2] and 0 in cache


def test_only_full_blocks_are_found():
    _, cache = make()
    computed(cache, TEXT[:5])  # blocks 0 and 1 are full, block 2 is not
    assert found(cache, TEXT) == [0, 1]
    assert 2 not in cache, "somebody will write into block 2: it cannot be shared by text"


def test_at_least_one_token_is_left_to_compute_because_its_logits_are_wanted():
    _, cache = make()
    computed(cache, TEXT)
    assert [len(found(cache, TEXT[:n])) for n in (1, 2, 3, 4, 5, 6, 7)] == [0, 0, 1, 1, 2, 2, 3]


def test_with_block_size_1_all_but_the_last_token_are_found():
    _, cache = make(block_size=1)
    computed(cache, TEXT)
    assert found(cache, TEXT) == [0, 1, 2, 3, 4, 5]


def test_a_text_is_found_as_far_as_it_is_the_same():
    _, cache = make()
    computed(cache, TEXT)
    assert found(cache, [10, 11, 12, 13, 99, 15, 16]) == [0, 1]
    assert found(cache, [10, 11, 99, 13, 14, 15, 16]) == [0], "a block after the first difference holds another context"
    assert found(cache, [99, 11, 12, 13, 14, 15, 16]) == []


def test_the_same_tokens_after_another_beginning_are_another_text():
    _, cache = make()
    computed(cache, [1, 2, 3, 4])
    computed(cache, [5, 6])
    assert found(cache, [5, 6, 3, 4, 0]) == [2], "3, 4 after 5, 6 has other K and V than 3, 4 after 1, 2"


def test_generated_tokens_count_too():
    """A conversation: the next question begins with the last answer."""
    _, cache = make()
    table = computed(cache, TEXT[:3])
    for length in (4, 5, 6):  # one token a step
        table.append(1)
        cache.publish(table, TEXT[:length])
    assert found(cache, TEXT) == [0, 1, 2]


def test_the_beginning_is_needed_to_find_the_rest():
    pool, cache = make(num_blocks=3)
    computed(cache, TEXT[:6]).free()  # reused in the order 2, 1, 0
    pool.allocate_many(2)
    assert found(cache, TEXT) == [0]
    pool.allocate()
    assert found(cache, TEXT) == []


# ---- adopting --------------------------------------------------------------------------------------------------------


def test_finding_takes_nothing_and_adopting_takes_references():
    pool, cache = make()
    computed(cache, TEXT)
    blocks, hashes = cache.find(TEXT)
    assert [pool.ref_count(block) for block in blocks] == [1, 1, 1], "whoever looked may not be admitted after all"
    table = BlockTable(pool)
    cache.adopt(table, blocks, hashes)
    assert (list(table), table.num_tokens) == ([0, 1, 2], 6)
    assert [pool.ref_count(block) for block in blocks] == [2, 2, 2]


def test_adopting_takes_free_blocks_out_of_the_queue_from_wherever_they_are():
    pool, cache = make(num_blocks=4)
    computed(cache, TEXT[:4]).free()
    assert pool.free_queue == (2, 3, 1, 0)
    table = computed(cache, TEXT[:5], adopting=True)
    assert list(table) == [0, 1, 2], "blocks 0 and 1 still held the text: only its fifth token needs a new block"
    assert pool.free_queue == (3,)
    pool.check_integrity([table])


def test_the_last_block_that_was_adopted_is_never_written():
    pool, cache = make()
    first = computed(cache, TEXT)
    second = computed(cache, [*TEXT[:4], 99], adopting=True)
    assert (list(first), list(second)) == ([0, 1, 2, 3], [0, 1, 4])
    pool.check_integrity([first, second])


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_of_two_equal_texts_computed_side_by_side_one_block_is_kept():
    pool, cache = make()
    first, second = BlockTable(pool), BlockTable(pool)
    for table in (first, second):
        table.append(5)
    for table in (first, second):
        cache.publish(table, TEXT[:5])
    assert (list(first), list(second)) == ([0, 1, 2], [0, 1, 5])
    assert pool.free_queue == (6, 7, 3, 4), "the second text gave its own copies of blocks 0 and 1 back"
    pool.check_integrity([first, second])


def test_the_block_that_is_kept_may_have_been_free():
    pool, cache = make()
    computed(cache, TEXT[:2]).free()
    second = computed(cache, TEXT[:2])  # its owner did not look the text up
    assert list(second) == [0] and pool.ref_count(0) == 1
    pool.check_integrity([second])


def test_publishing_again_changes_nothing():
    pool, cache = make()
    table = computed(cache, TEXT)
    cache.publish(table, TEXT)
    assert (list(table), pool.num_used) == ([0, 1, 2, 3], 4)


def test_a_fork_publishes_what_it_adds():
    _, cache = make()
    table = computed(cache, TEXT[:2])
    twin = table.fork()
    for each, tokens in ((table, [10, 11, 1, 2]), (twin, [10, 11, 3, 4])):
        each.append(2)
        cache.publish(each, tokens)
    assert found(cache, [10, 11, 1, 2, 0]) == list(table) == [0, 1]
    assert found(cache, [10, 11, 3, 4, 0]) == list(twin) == [0, 2]


# ---- forgetting ------------------------------------------------------------------------------------------------------


def test_a_freed_block_can_be_found_until_it_is_reused():
    pool, cache = make(num_blocks=3)
    computed(cache, TEXT[:4]).free()
    assert found(cache, TEXT) == [0, 1]
    table = computed(cache, [1, 2])  # in block 2, which was never used
    assert found(cache, TEXT) == [0, 1]
    table.append(1)
    assert (list(table), found(cache, TEXT)) == ([2, 1], [0]), "block 1 holds another text now"
    pool.check_integrity([table])


def test_the_text_that_nobody_wanted_for_the_longest_time_is_reused_first():
    pool, cache = make(num_blocks=4)
    first, second = computed(cache, [1, 2, 3, 4]), computed(cache, [5, 6, 7, 8])
    second.free()
    first.free()
    assert pool.free_queue == (3, 2, 1, 0), "of each text the tail before its head"
    computed(cache, [1, 2, 3], adopting=True).free()  # somebody wants block 0 again
    assert pool.free_queue == (2, 1, 3, 0)


def test_a_shared_block_outlives_its_first_owner():
    pool, cache = make(num_blocks=3)
    first = computed(cache, TEXT[:4])
    second = computed(cache, TEXT[:3], adopting=True)
    first.free()
    assert found(cache, TEXT) == [0, 1] and pool.ref_count(0) == 1
    pool.check_integrity([second])


def test_a_block_that_was_reused_for_a_text_of_its_own_is_found_under_that_one():
    _, cache = make(num_blocks=1)
    computed(cache, [1, 2]).free()
    computed(cache, [3, 4]).free()
    assert (found(cache, [1, 2, 0]), found(cache, [3, 4, 0])) == ([], [0])


def test_swapped_out_blocks_can_still_be_found_until_they_are_reused():
    pool, cache = make(num_blocks=4)
    table = computed(cache, TEXT[:4])
    table.move_to(BlockPool(2, 2), {})
    assert found(cache, TEXT) == [0, 1], "their contents were copied to the swap space, and are still here as well"
    pool.allocate_many(4)
    assert found(cache, TEXT) == []


def test_what_was_swapped_in_can_be_found_again():
    pool, cache = make(num_blocks=4)
    table = computed(cache, TEXT[:4])
    table.move_to(BlockPool(2, 2), {})
    for block in pool.allocate_many(4):  # meanwhile others have used every block
        pool.free(block)
    table.move_to(pool, {})
    cache.publish(table, TEXT[:4])
    assert found(cache, TEXT) == list(table)


def test_a_reset_forgets_everything_but_takes_no_block_from_anybody():
    pool, cache = make()
    table = computed(cache, TEXT)
    computed(cache, [1, 2]).free()
    cache.reset()
    assert (found(cache, TEXT), found(cache, [1, 2, 3])) == ([], [])
    assert (list(table), pool.num_used) == ([0, 1, 2, 3], 4)
    assert not any(block in cache for block in range(8))


def test_after_a_reset_texts_are_found_again_once_they_have_been_computed_again():
    _, cache = make()
    computed(cache, TEXT[:4])
    cache.reset()
    computed(cache, TEXT[:4])
    assert found(cache, TEXT) == [2, 3]


@pytest.mark.parametrize("num_before", [1, 2, 3])
def test_what_was_begun_before_a_reset_is_never_found_after_it(num_before):
    """The model's weights have changed: K and V that rest on the old ones must not reach a new request."""
    _pool, cache = make()
    old = computed(cache, TEXT[:num_before])
    cache.reset()
    old.append(4 - num_before)
    cache.publish(old, TEXT[:4])
    computed(cache, TEXT[:2])  # by the new weights
    assert not set(found(cache, TEXT)) & set(old), f"{found(cache, TEXT)} were found, but {list(old)} hold old K and V"


# ---- who may see what ------------------------------------------------------------------------------------------------


def test_only_texts_of_the_same_salt_share():
    _, cache = make()
    computed(cache, TEXT, salt="ours")
    assert (found(cache, TEXT, "ours"), found(cache, TEXT, "theirs"), found(cache, TEXT)) == ([0, 1, 2], [], [])


def test_equal_texts_of_different_salts_are_stored_twice():
    _, cache = make()
    ours, theirs = computed(cache, TEXT[:2], salt="ours"), computed(cache, TEXT[:2], salt="theirs")
    assert list(ours) != list(theirs)


def test_no_two_caches_have_the_same_keys_so_nobody_can_prepare_a_collision():
    caches = [make()[1] for _ in range(3)]
    for cache in caches:
        computed(cache, TEXT)
    assert len({tuple(cache.find(TEXT)[1]) for cache in caches}) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 23], [12, 3]),  # the same digits
        ([5, 6], [6, 5]),
        ([5, 6], [4, 7]),  # one token goes up, its neighbour down: a hash that adds collides
        ([0, 0], [0, 1]),
        ([256, 1], [1, 256]),
        ([2**40, 1], [2**40 + 1, 0]),
    ],
)
def test_texts_that_poor_hashes_confuse(one, other):
    _, cache = make()
    computed(cache, one)
    assert found(cache, [*other, 9]) == []
    assert cache.block_hash(b"parent", one) != cache.block_hash(b"parent", other)


def test_any_string_is_a_salt_even_one_that_is_no_valid_unicode():
    _, cache = make()
    computed(cache, TEXT[:4], "\ud800")
    assert cache.find(TEXT, "\ud800")[0] and not cache.find(TEXT, "")[0]
