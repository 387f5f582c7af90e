"""Who may start: now, later or never; the watermark; the order of policies; and what the prefix cache changes."""

import pytest

from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.memory import BlockTable
from minipage.promises.scheduling_examples import add, blocks, make, names, step, written
from minipage.scheduling import Admission, GroupStatus, Sequence, SequenceGroup

# ---- three answers ---------------------------------------------------------------------------------------------------


def group_of(scheduler, num_prompt, num_generated=1, n=1):
    """A request that was not added yet."""
    sequences = [Sequence(str(i), list(range(num_prompt)), BlockTable(scheduler.block_pool)) for i in range(n)]
    return SequenceGroup("new", sequences, num_prompt + num_generated, n)


def test_now_if_there_is_room():
    scheduler = make(num_blocks=3)
    assert scheduler.admission(group_of(scheduler, num_prompt=12), cached=[]) is Admission.NOW


def test_later_if_there_will_be_room():
    scheduler = make(num_blocks=3)
    scheduler.block_pool.allocate()
    assert scheduler.admission(group_of(scheduler, num_prompt=12), cached=[]) is Admission.LATER


def test_later_if_all_seats_are_taken():
    scheduler = make(max_num_seqs=2)
    add(scheduler, "A", num_prompt=1)
    step(scheduler)
    assert scheduler.admission(group_of(scheduler, num_prompt=1), cached=[]) is Admission.NOW
    assert scheduler.admission(group_of(scheduler, num_prompt=1, n=2), cached=[]) is Admission.LATER


def test_never_if_there_would_be_no_room_in_an_empty_pool():
    scheduler = make(num_blocks=3)
    assert scheduler.admission(group_of(scheduler, num_prompt=13), cached=[]) is Admission.NEVER
    assert scheduler.admission(group_of(scheduler, num_prompt=1, num_generated=13), cached=[]) is Admission.NEVER
    with pytest.raises(InvalidRequestError, match=r"takes 4 blocks of 4, but the whole pool has 3.*Lower max_tokens"):
        scheduler.add(group_of(scheduler, num_prompt=13))
    assert not scheduler.has_unfinished


def test_a_group_needs_room_for_all_its_prompt_but_not_for_what_it_may_generate():
    scheduler = make(num_blocks=4, max_num_batched_tokens=4)
    scheduler.block_pool.allocate_many(2)
    assert scheduler.admission(group_of(scheduler, num_prompt=8, num_generated=8), cached=[]) is Admission.NOW
    assert scheduler.admission(group_of(scheduler, num_prompt=9), cached=[]) is Admission.LATER, "not its first chunk"


def test_a_group_that_starts_again_needs_blocks_for_what_its_texts_do_not_share():
    scheduler = make(num_blocks=7, block_size=2)
    group = add(scheduler, "A", num_prompt=3, num_generated=4, n=2)
    for _ in range(3):
        step(scheduler)
    scheduler.recompute_all()
    assert group.blocks_to_start(2) == 3 + 2, "6 tokens each, of which 3 are the same: one full block can be shared"
    scheduler.block_pool.allocate_many(3)
    assert scheduler.admission(group, cached=[]) is Admission.LATER


# ---- watermark -------------------------------------------------------------------------------------------------------


def test_admission_leaves_the_watermark_free_so_that_the_running_do_not_run_dry_at_once():
    scheduler = make(num_blocks=10, watermark=0.2)
    add(scheduler, "A", num_prompt=16)
    add(scheduler, "B", num_prompt=16)
    add(scheduler, "C", num_prompt=1)
    step(scheduler)
    assert (names(scheduler.running), scheduler.block_pool.num_free) == (["A", "B"], 2)
    step(scheduler)  # A and B take their fifth blocks
    assert (names(scheduler.waiting), scheduler.block_pool.num_free) == (["C"], 0)


def test_the_watermark_does_not_hold_for_the_only_one():
    scheduler = make(num_blocks=4, watermark=0.5)
    add(scheduler, "A", num_prompt=16, num_generated=1)
    assert step(scheduler) == [("A", 0, 16)], "otherwise it would wait for ever"


@pytest.mark.parametrize("watermark", [-0.1, 1, 1.5])
def test_a_watermark_is_a_share_of_the_pool(watermark):
    with pytest.raises(ConfigurationError, match="watermark"):
        make(watermark=watermark)


# ---- policies --------------------------------------------------------------------------------------------------------


def test_first_come_first_served_knows_no_priorities():
    scheduler = make(max_num_seqs=1)
    for name, priority in (("A", 2), ("B", 1), ("C", 0)):
        add(scheduler, name, num_prompt=1, priority=priority)
    assert names(scheduler.waiting) == ["A", "B", "C"]


def test_with_priorities_the_smallest_number_is_served_first_and_equals_in_order_of_arrival():
    scheduler = make(policy="priority")
    for name, priority in (("A", 1), ("B", 0), ("C", 1), ("D", 0), ("E", -1)):
        add(scheduler, name, num_prompt=1, priority=priority)
    assert names(scheduler.waiting) == ["E", "B", "D", "A", "C"]
    assert [name for name, _, _ in step(scheduler)] == ["E", "B", "D", "A", "C"]


def test_the_least_urgent_gives_way_even_if_it_came_first():
    scheduler = make(num_blocks=4, block_size=1, policy="priority")
    late = add(scheduler, "A", num_prompt=2, num_generated=3, priority=1)
    step(scheduler)
    urgent = add(scheduler, "B", num_prompt=1, num_generated=4, priority=0)
    assert step(scheduler) == [("A", 2, 1), ("B", 0, 1)]
    assert names(scheduler.running) == ["B", "A"]
    plan = scheduler.schedule()
    assert (written(plan), names(plan.preempted)) == ([("B", 1, 1)], ["A"])
    assert (urgent.status, late.status) == (GroupStatus.RUNNING, GroupStatus.WAITING)


def test_a_policy_of_ones_own_is_a_function():
    def shortest_first(group):
        return group.max_num_tokens, group.arrival

    scheduler = make(policy=shortest_first, max_num_seqs=1)
    for name, num_generated in (("long", 9), ("short", 2), ("middle", 5)):
        add(scheduler, name, num_prompt=1, num_generated=num_generated)
    assert names(scheduler.waiting) == ["short", "middle", "long"]


# ---- with a prefix cache ---------------------------------------------------------------------------------------------


def test_a_prompt_that_was_computed_before_is_not_computed_again_but_for_its_last_token():
    scheduler = make(caching=True)
    add(scheduler, "A", num_prompt=8, num_generated=1)
    assert step(scheduler) == [("A", 0, 8)]
    second = add(scheduler, "B", num_prompt=8, num_generated=3)
    assert step(scheduler) == [("B", 4, 4)], "the second block would leave nothing to compute"
    assert blocks(second)[0][0] == 0


def test_hits_are_counted_in_tokens():
    scheduler = make(caching=True)
    add(scheduler, "A", num_prompt=10, num_generated=1)
    step(scheduler)
    add(scheduler, "B", prompt=[*range(8), 77, 78, 79], num_generated=1)
    step(scheduler)
    assert (scheduler.num_queried_tokens, scheduler.num_hit_tokens) == (10 + 11, 8)


def test_nobody_is_given_a_block_whose_k_and_v_are_not_written_yet():
    scheduler = make(caching=True)
    add(scheduler, "A", num_prompt=9)
    add(scheduler, "B", num_prompt=9)
    assert step(scheduler) == [("A", 0, 9), ("B", 0, 9)], "both at once: neither can wait for the other"
    assert blocks(scheduler.running[0])[0][:2] == blocks(scheduler.running[1])[0][:2] == [0, 1], (
        "but from then on the text is stored once"
    )
    assert scheduler.block_pool.num_used == 4


def test_a_prompt_in_flight_is_shared_as_far_as_it_has_come():
    scheduler = make(caching=True, max_num_batched_tokens=4)
    add(scheduler, "A", num_prompt=9, num_generated=1)
    assert step(scheduler) == [("A", 0, 4)]
    add(scheduler, "B", num_prompt=9, num_generated=1)
    assert step(scheduler) == [("A", 4, 4)]
    assert step(scheduler) == [("A", 8, 1), ("B", 8, 1)]


def test_the_samples_of_a_group_begin_with_what_is_known():
    scheduler = make(caching=True)
    add(scheduler, "A", num_prompt=9, num_generated=1)
    step(scheduler)
    group = add(scheduler, "B", num_prompt=9, n=3)
    assert step(scheduler) == [("B.0", 8, 1)]
    assert [table[:2] for table in blocks(group)] == [[0, 1]] * 3


def test_what_was_preempted_finds_its_own_blocks_unless_others_have_used_them():
    scheduler = make(caching=True)
    group = add(scheduler, "A", num_prompt=7)
    for _ in range(3):
        step(scheduler)
    scheduler.recompute_all()
    assert blocks(group) == [[]]
    assert step(scheduler) == [("A", 8, 2)], "blocks 0 and 1 were full: the prompt, and a generated token"


def test_a_group_that_starts_again_looks_up_only_what_all_its_texts_share():
    scheduler = make(caching=True)
    add(scheduler, "A", num_prompt=3, n=2)
    for _ in range(6):
        step(scheduler)
    scheduler.recompute_all()
    assert step(scheduler) == [("A.0", 0, 3)], "the first block of each was full and known, but they differ in it"
    assert step(scheduler) == [("A.0", 3, 5), ("A.1", 3, 5)]


def test_when_all_that_the_texts_share_is_known_the_others_fork_at_once():
    scheduler = make(caching=True)
    add(scheduler, "A", num_prompt=8, n=2)
    for _ in range(3):
        step(scheduler)
    scheduler.recompute_all()
    assert step(scheduler) == [("A.0", 8, 2), ("A.1", 8, 2)]
    assert step(scheduler) == [("A.0", 10, 1), ("A.1", 10, 1)]


def test_found_blocks_are_not_paid_for_unless_they_have_to_come_out_of_the_free_queue():
    scheduler = make(num_blocks=4, caching=True)
    pool = scheduler.block_pool
    add(scheduler, "A", num_prompt=8, num_generated=1)
    step(scheduler)
    group = group_of(scheduler, num_prompt=12)
    assert pool.num_free == 4 and scheduler.prefix_cache.find(group.leader.token_ids)[0] == [0, 1]
    pool.allocate()
    assert scheduler.admission(group, cached=[0, 1]) is Admission.NOW, "3 free blocks: two are found, one is new"
    pool.allocate()
    assert scheduler.admission(group, cached=[0, 1]) is Admission.LATER, "the two that are free are the two found"
    pool.revive(0)
    pool.revive(1)
    assert scheduler.admission(group, cached=[0, 1]) is Admission.LATER, "no block is free, and one is needed"


def test_a_group_that_is_not_admitted_takes_no_reference():
    scheduler = make(num_blocks=6, caching=True)
    add(scheduler, "A", num_prompt=12, num_generated=5)
    step(scheduler)
    before = scheduler.block_pool.free_queue
    add(scheduler, "B", prompt=[*range(8), *range(50, 66)], num_generated=1)
    step(scheduler)
    assert names(scheduler.waiting) == ["B"]
    assert [scheduler.block_pool.ref_count(block) for block in (0, 1, 2)] == [1, 1, 1]
    assert scheduler.block_pool.free_queue == before[1:], "only A has taken a block, for its next token"


def test_requests_of_different_salts_share_nothing():
    scheduler = make(caching=True)
    for name, salt in (("A", "ours"), ("B", "theirs"), ("C", "ours")):
        add(scheduler, name, num_prompt=9, num_generated=1, cache_salt=salt)
        expected = 8 if name == "C" else 0
        assert step(scheduler) == [(name, expected, 9 - expected)]


def test_an_emptied_cache_finds_nothing_and_harms_nobody_who_runs():
    scheduler = make(caching=True)
    add(scheduler, "A", num_prompt=9)
    step(scheduler)
    scheduler.prefix_cache.reset()
    add(scheduler, "B", num_prompt=9)
    assert step(scheduler) == [("A", 9, 1), ("B", 0, 9)]
