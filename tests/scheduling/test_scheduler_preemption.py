"""When the pool runs dry: who gives way, and whether it is saved in the swap pool or computed again."""

import re

import numpy as np
import pytest

from minipage.errors import ConfigurationError
from minipage.memory import BlockCopy
from minipage.promises.by_the_paper import ByThePaper
from minipage.promises.scheduling_examples import add, blocks, finish_step, make, names, step, written
from minipage.scheduling import GroupStatus


def crowded(**options):
    """Six blocks of two tokens: A, of one sequence, and B, of two, in the middle of generating, and no block free."""
    scheduler = make(num_blocks=6, block_size=2, **options)
    a = add(scheduler, "A", num_prompt=4, num_generated=8)
    b = add(scheduler, "B", num_prompt=3, num_generated=3, n=2)
    step(scheduler)
    step(scheduler)
    assert (blocks(a), blocks(b)) == ([[0, 1, 4]], [[2, 5], [2, 3]])
    step(scheduler)  # A has room for one token more, B has none: it finds nobody after itself
    return scheduler, a, b


# ---- who gives way --------------------------------------------------------------------------------------------------


def test_the_last_in_the_order_gives_way_even_if_it_is_the_largest():
    scheduler = make(num_blocks=6, block_size=1)
    add(scheduler, "A", num_prompt=1, num_generated=4)
    add(scheduler, "B", num_prompt=1, num_generated=4)
    c = add(scheduler, "C", num_prompt=4, num_generated=2)
    step(scheduler)
    plan = scheduler.schedule()
    assert (names(plan.preempted), c.status) == (["C"], GroupStatus.WAITING)
    finish_step(scheduler, plan)


# ---- swapping --------------------------------------------------------------------------------------------------------


def test_a_group_is_swapped_out_and_in_again_block_by_block():
    scheduler, a, b = crowded(num_swap_blocks=8, preemption="swap")
    assert (b.status, b.num_preemptions) == (GroupStatus.SWAPPED, 1)
    assert blocks(b) == [[0, 1], [0, 2]], "three blocks in the swap pool; the one that both share is there once"
    assert [seq.num_computed_tokens for seq in b.sequences] == [4, 4], "nothing is lost"
    assert (scheduler.block_pool.num_free, scheduler.swap_pool.num_free) == (3, 5)

    scheduler.finish(a, a.leader)
    plan = scheduler.schedule()
    assert plan.swap_in == [BlockCopy(0, 5), BlockCopy(1, 3), BlockCopy(2, 2)]
    assert (written(plan), b.status) == ([("B.0", 4, 1), ("B.1", 4, 1)], GroupStatus.RUNNING)
    assert blocks(b) == [[5, 3, 4], [5, 2, 1]], "and each goes on with a block of its own"
    assert scheduler.swap_pool.num_free == 8


def test_the_plan_says_what_to_save_before_the_blocks_are_used_for_something_else():
    scheduler = make(num_blocks=4, block_size=2, num_swap_blocks=4, preemption="swap")
    a = add(scheduler, "A", num_prompt=4, num_generated=4)
    b = add(scheduler, "B", num_prompt=4, num_generated=2)
    step(scheduler)
    plan = scheduler.schedule()
    assert (names(plan.preempted), plan.swap_out) == (["B"], [BlockCopy(2, 0), BlockCopy(3, 1)])
    assert (written(plan), blocks(b)) == ([("A", 4, 1)], [[0, 1]])
    assert blocks(a)[0][2] in (2, 3), "what was B's block is A's from this step on"


def test_nobody_is_admitted_while_anybody_is_swapped_out():
    scheduler, _, b = crowded(num_swap_blocks=8, preemption="swap")
    add(scheduler, "small", num_prompt=1)
    assert scheduler.block_pool.num_free == 3
    step(scheduler)
    assert (names(scheduler.waiting), b.status) == (["small"], GroupStatus.SWAPPED), (
        "small would fit, but B comes first"
    )


def test_without_room_in_the_swap_pool_a_group_is_computed_again_and_nothing_stops():
    scheduler, a, b = crowded(num_swap_blocks=2, preemption="swap")
    assert (b.status, blocks(b)) == (GroupStatus.WAITING, [[], []])
    assert scheduler.swap_pool.num_free == 2
    texts = [a.leader, *b.sequences]
    for _ in range(30):
        if scheduler.has_unfinished:
            assert step(scheduler), "there is always something to do"
    assert [len(seq.token_ids) for seq in texts] == [12, 6, 6]
    assert scheduler.block_pool.num_used == scheduler.swap_pool.num_used == 0


def test_when_the_swap_pool_is_full_the_next_are_computed_again():
    scheduler = make(num_blocks=4, block_size=1, num_swap_blocks=1, preemption="swap")
    add(scheduler, "A", num_prompt=1, num_generated=4)
    b, c, d = (add(scheduler, name, num_prompt=1, num_generated=2) for name in "BCD")
    step(scheduler)
    step(scheduler)  # A takes the block of D, B that of C
    assert (d.status, c.status, b.status) == (GroupStatus.SWAPPED, GroupStatus.WAITING, GroupStatus.FINISHED)


def test_auto_saves_groups_of_several_sequences_and_computes_the_others_again():
    scheduler, _, b = crowded(num_swap_blocks=8, preemption="auto")
    assert b.status is GroupStatus.SWAPPED
    scheduler = make(num_blocks=2, block_size=1, num_swap_blocks=8, preemption="auto")
    add(scheduler, "A", num_prompt=1, num_generated=2)
    single = add(scheduler, "B", num_prompt=1, num_generated=2)
    step(scheduler)
    step(scheduler)
    assert single.status is GroupStatus.WAITING


def test_recompute_never_touches_the_swap_pool():
    scheduler, _, b = crowded(num_swap_blocks=8, preemption="recompute")
    assert (b.status, scheduler.swap_pool.num_free) == (GroupStatus.WAITING, 8)


def test_an_aborted_group_leaves_the_swap_pool_too():
    scheduler, _, b = crowded(num_swap_blocks=8, preemption="swap")
    scheduler.remove(b)
    assert (b.status, scheduler.swapped, scheduler.swap_pool.num_free) == (GroupStatus.FINISHED, [], 8)


def test_a_failed_step_distrusts_the_swap_pool_too():
    """Whether the blocks were copied before it failed, nobody knows."""
    scheduler, _, b = crowded(num_swap_blocks=8, preemption="swap")
    scheduler.recompute_all()
    assert (names(scheduler.waiting), scheduler.swapped, blocks(b)) == (["A", "B"], [], [[], []])
    assert (scheduler.block_pool.num_free, scheduler.swap_pool.num_free) == (6, 8)
    assert step(scheduler)[0] == ("A", 0, 7), "and what is computed anew comes from the main pool"


def test_a_group_may_be_swapped_in_the_middle_of_its_prompt():
    scheduler = make(num_blocks=5, block_size=2, num_swap_blocks=4, preemption="swap", max_num_batched_tokens=4)
    a = add(scheduler, "A", num_prompt=3, num_generated=3)
    b = add(scheduler, "B", num_prompt=6, num_generated=1, n=2)
    assert step(scheduler) == [("A", 0, 3), ("B.0", 0, 1)]
    assert step(scheduler) == [("A", 3, 1), ("B.0", 1, 3)]
    assert step(scheduler) == [("A", 4, 1)]
    assert (a.status, b.status, blocks(b)) == (GroupStatus.FINISHED, GroupStatus.SWAPPED, [[0, 1], []])
    assert step(scheduler) == [("B.0", 4, 2)], "it goes on where it was"
    assert not scheduler.has_unfinished


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preemption", ["swap", "swop", None, np.array(["swap", "auto"])], ids=str)
def test_swapping_needs_swap_space_and_names_are_checked(preemption):
    with pytest.raises(ConfigurationError, match=re.escape(f"preemption is {preemption!r}")):
        make(preemption=preemption)


def test_auto_without_swap_space_always_computes_again():
    _, _, b = crowded(preemption="auto")
    assert b.status is GroupStatus.WAITING


# ---- swapped out, or waiting -----------------------------------------------------------------------------------------


def one_swapped_out_and_one_waiting(policy="fcfs", **options):
    """B is swapped out and C, who is more urgent, waits; A has all four blocks, so there is room for neither."""
    scheduler = make(num_blocks=4, block_size=1, num_swap_blocks=8, preemption="swap", policy=policy, **options)
    add(scheduler, "A", num_prompt=1, num_generated=4, priority=0)
    b = add(scheduler, "B", num_prompt=1, num_generated=3, priority=2)
    while b.status is not GroupStatus.SWAPPED:
        step(scheduler)
    c = add(scheduler, "C", num_prompt=2, num_generated=2, priority=1)
    return scheduler, b, c


def order_of_coming_in(scheduler, b, c):
    came_in = []
    while scheduler.has_unfinished:
        waited = [group for group in (b, c) if group.status in (GroupStatus.WAITING, GroupStatus.SWAPPED)]
        plan = scheduler.schedule()
        assert plan.chunks, "somebody waits, and nobody runs: this would go on for ever"
        came_in += [group.group_id for group in waited if group.status is GroupStatus.RUNNING]
        finish_step(scheduler, plan)
    return came_in


@pytest.mark.parametrize(("policy", "first"), [("fcfs", "B"), ("priority", "C")])
def test_the_policy_alone_decides_between_those_swapped_out_and_those_who_wait(policy, first):
    scheduler, b, c = one_swapped_out_and_one_waiting(policy)
    assert order_of_coming_in(scheduler, b, c)[0] == first


def test_a_schedule_of_ones_own_may_keep_the_papers_rule():
    """Nobody is admitted while anybody is swapped out, whatever the policy says of those two."""

    scheduler, b, c = one_swapped_out_and_one_waiting("priority", cls=ByThePaper)
    assert order_of_coming_in(scheduler, b, c) == ["B", "C"]
