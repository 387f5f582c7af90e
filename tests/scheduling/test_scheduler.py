"""What a Scheduler promises, by example. Read the names from top to bottom: they are its manual.

Here requests have one sequence each, and the preempted are computed again. More in test_scheduler_groups.py,
test_scheduler_preemption.py and test_scheduler_admission.py.
"""

import pytest

from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.promises.scheduling_examples import add, blocks, finish_step, make, names, step, written
from minipage.scheduling import GroupStatus, StepPlan

# ---- one sequence ----------------------------------------------------------------------------------------------------


def test_an_empty_scheduler_plans_nothing():
    scheduler = make()
    assert scheduler.schedule() == StepPlan()
    assert not scheduler.has_unfinished


def test_first_the_prompt_is_computed_then_one_token_a_step():
    scheduler = make()
    group = add(scheduler, "A", num_prompt=5, num_generated=3)
    seq = group.leader
    assert group.status is GroupStatus.WAITING
    assert step(scheduler) == [("A", 0, 5)]  # prefill; its last logits give token 5
    assert (group.status, seq.num_computed_tokens, seq.num_uncomputed_tokens) == (GroupStatus.RUNNING, 5, 1)
    assert step(scheduler) == [("A", 5, 1)]  # decode
    assert step(scheduler) == [("A", 6, 1)]
    assert (group.status, seq.output_token_ids) == (GroupStatus.FINISHED, [5, 6, 7])


def test_a_finished_sequence_gives_its_blocks_back():
    scheduler = make(num_blocks=2)
    add(scheduler, "A", num_prompt=5, num_generated=1)
    step(scheduler)
    assert not scheduler.has_unfinished
    assert scheduler.block_pool.num_free == 2, "the only sequence is finished, but not all blocks are free: a leak"


# ---- the budget: max_num_batched_tokens ------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_budget_is_cut_into_chunks():
    scheduler = make(max_num_batched_tokens=4)
    add(scheduler, "A", num_prompt=10)
    assert [step(scheduler) for _ in range(3)] == [[("A", 0, 4)], [("A", 4, 4)], [("A", 8, 2)]]
    assert step(scheduler) == [("A", 10, 1)], "only the chunk that reaches the end of the prompt gives a token"


def test_with_a_budget_of_1_a_prompt_goes_token_by_token():
    scheduler = make(max_num_batched_tokens=1)
    add(scheduler, "A", num_prompt=3)
    assert [step(scheduler) for _ in range(4)] == [[("A", 0, 1)], [("A", 1, 1)], [("A", 2, 1)], [("A", 3, 1)]]


def test_chunks_fill_what_running_sequences_leave_of_the_budget():
    scheduler = make(max_num_batched_tokens=4)
    add(scheduler, "A", num_prompt=2)
    add(scheduler, "B", num_prompt=7)
    assert step(scheduler) == [("A", 0, 2), ("B", 0, 2)]
    assert step(scheduler) == [("A", 2, 1), ("B", 2, 3)]
    assert step(scheduler) == [("A", 3, 1), ("B", 5, 2)]
    assert step(scheduler) == [("A", 4, 1), ("B", 7, 1)]


def test_a_step_may_end_one_prompt_and_begin_the_next():
    scheduler = make(max_num_batched_tokens=6)
    for name in "ABC":
        add(scheduler, name, num_prompt=4)
    assert step(scheduler) == [("A", 0, 4), ("B", 0, 2)]
    assert step(scheduler) == [("A", 4, 1), ("B", 2, 2), ("C", 0, 3)]
    assert step(scheduler) == [("A", 5, 1), ("B", 4, 1), ("C", 3, 1)]


def test_a_stream_of_new_arrivals_does_not_stop_those_who_run():
    scheduler = make(max_num_batched_tokens=4)
    oldest = add(scheduler, "A", num_prompt=4, num_generated=5)
    for number in range(5):  # one long prompt arrives at every step
        add(scheduler, f"late {number}", num_prompt=8)
        assert step(scheduler)[0][0] == "A", "the oldest must get its token before any prompt gets a chunk"
    assert oldest.status is GroupStatus.FINISHED


# ---- who is let in ---------------------------------------------------------------------------------------------------


def test_sequences_are_let_in_while_there_are_seats():
    scheduler = make(max_num_seqs=2)
    add(scheduler, "A", num_prompt=1, num_generated=2)
    add(scheduler, "B", num_prompt=1)
    add(scheduler, "C", num_prompt=1)
    assert step(scheduler) == [("A", 0, 1), ("B", 0, 1)]
    assert step(scheduler) == [("A", 1, 1), ("B", 1, 1)]  # A finishes and leaves its seat
    assert step(scheduler) == [("B", 2, 1), ("C", 0, 1)]


def test_nobody_overtakes_a_long_prompt_that_waits_for_blocks():
    scheduler = make(num_blocks=4)
    add(scheduler, "A", num_prompt=8, num_generated=5)
    add(scheduler, "long", num_prompt=12, num_generated=1)
    add(scheduler, "short", num_prompt=1)
    assert step(scheduler) == [("A", 0, 8)]
    assert names(scheduler.waiting) == ["long", "short"], "short would fit, but it came later"


def test_a_prompt_is_let_in_only_if_all_of_it_fits_not_just_its_first_chunk():
    scheduler = make(num_blocks=3, max_num_batched_tokens=6)
    add(scheduler, "A", num_prompt=4, num_generated=1)
    add(scheduler, "B", num_prompt=12, num_generated=1)
    assert step(scheduler) == [("A", 0, 4)]
    assert step(scheduler) == [("B", 0, 6)]


def test_a_request_that_could_never_fit_is_refused_when_it_is_added_and_the_others_go_on():
    scheduler = make(num_blocks=2, block_size=4)
    good = add(scheduler, "good", num_prompt=3, num_generated=2)
    with pytest.raises(InvalidRequestError, match=r"3 blocks of 4.*has 2"):
        add(scheduler, "too long", num_prompt=6, num_generated=4)
    assert names(scheduler.waiting) == ["good"]
    step(scheduler)
    step(scheduler)
    assert (good.status, scheduler.has_unfinished) == (GroupStatus.FINISHED, False)


def test_the_last_generated_token_needs_no_slot_because_nothing_comes_after_it():
    scheduler = make(num_blocks=2, block_size=4)
    group = add(scheduler, "A", num_prompt=6, num_generated=3)  # 9 tokens, of which 8 are stored
    seq = group.leader
    while scheduler.has_unfinished:
        step(scheduler)
    assert (len(seq.token_ids), group.num_preemptions) == (9, 0)


# ---- when the pool runs dry ------------------------------------------------------------------------------------------


def test_a_preemption_step_by_step():
    """Four blocks of two tokens; A and B, three tokens each, want to grow."""
    scheduler = make(num_blocks=4, block_size=2)
    pool = scheduler.block_pool
    a, b = add(scheduler, "A", num_prompt=3, num_generated=5), add(scheduler, "B", num_prompt=3, num_generated=4)

    assert step(scheduler) == [("A", 0, 3), ("B", 0, 3)]
    assert (blocks(a), blocks(b), pool.free_queue) == ([[0, 1]], [[2, 3]], ())

    assert step(scheduler) == [("A", 3, 1), ("B", 3, 1)]  # the last slots of blocks 1 and 3

    # A needs a third block and the pool is dry. B came last: it gives back 3, then 2, and A gets 3.
    plan = scheduler.schedule()
    assert (written(plan), names(plan.preempted)) == ([("A", 4, 1)], ["B"])
    assert (blocks(a), blocks(b), pool.free_queue) == ([[0, 1, 3]], [[]], (2,))
    assert (b.status, b.num_preemptions, names(scheduler.waiting)) == (GroupStatus.WAITING, 1, ["B"])
    assert b.leader.token_ids == [0, 1, 2, 3, 4], "B keeps its tokens, the two generated ones too"
    finish_step(scheduler, plan)

    # B has 5 tokens now and needs 3 blocks: it waits until A is done.
    assert step(scheduler) == [("A", 5, 1)]
    assert step(scheduler) == [("A", 6, 1)]
    assert (a.status, pool.free_queue) == (GroupStatus.FINISHED, (2, 3, 1, 0))

    # Recomputation: prompt and generated tokens together, as if all of it were the prompt.
    assert step(scheduler) == [("B", 0, 5)]
    assert blocks(b) == [[2, 3, 1]]
    text = b.leader
    assert step(scheduler) == [("B", 5, 1)]
    assert (b.status, text.output_token_ids, pool.num_free) == (GroupStatus.FINISHED, [3, 4, 5, 6], 4)


def test_the_latest_gives_way_even_if_it_is_the_one_that_needs_the_block():
    scheduler = make(num_blocks=3, block_size=2)
    add(scheduler, "A", num_prompt=3, num_generated=2)
    b = add(scheduler, "B", num_prompt=2, num_generated=4)
    assert step(scheduler) == [("A", 0, 3), ("B", 0, 2)]
    plan = scheduler.schedule()  # A has room in its second block, B has none
    assert (written(plan), names(plan.preempted)) == ([("A", 3, 1)], ["B"])
    assert (blocks(b), scheduler.block_pool.num_free) == ([[]], 1)


def test_several_are_preempted_latest_first_and_wait_in_order_of_arrival():
    scheduler = make(num_blocks=3, block_size=1)
    for name in "ABCD":
        add(scheduler, name, num_prompt=1, num_generated=2)
    assert step(scheduler) == [("A", 0, 1), ("B", 0, 1), ("C", 0, 1)]
    plan = scheduler.schedule()  # A takes the block of C; then B finds nobody later than itself
    assert (written(plan), names(plan.preempted)) == ([("A", 1, 1)], ["C", "B"])
    assert names(scheduler.waiting) == ["B", "C", "D"], "the preempted go back to the head of the queue"


def unfinished(scheduler):
    return names([*scheduler.running, *scheduler.waiting])


def test_in_a_pool_for_one_the_oldest_finishes_first_and_then_the_next():
    scheduler = make(num_blocks=2, block_size=2)
    groups = [add(scheduler, name, num_prompt=1, num_generated=4) for name in "ABC"]
    finished = []
    while scheduler.has_unfinished:
        step(scheduler)
        finished += [name for name in names(groups) if name not in finished and name not in unfinished(scheduler)]
    assert finished == ["A", "B", "C"], "everybody finishes, in order of arrival"
    assert scheduler.block_pool.num_free == 2


# ---- leaving early ---------------------------------------------------------------------------------------------------


def test_an_aborted_sequence_leaves_the_queue_it_is_in_and_frees_its_blocks():
    scheduler = make(max_num_seqs=2)
    a, b, c = (add(scheduler, name, num_prompt=5) for name in "ABC")
    step(scheduler)
    scheduler.remove(a)  # running
    scheduler.remove(c)  # waiting
    assert (names(scheduler.running), names(scheduler.waiting)) == (["B"], [])
    assert (a.status, b.status, c.status) == (GroupStatus.FINISHED, GroupStatus.RUNNING, GroupStatus.FINISHED)
    assert scheduler.block_pool.num_used == len(b.leader.block_table) == 2
    assert step(scheduler) == [("B", 5, 1)]


def test_aborting_what_has_finished_already_changes_nothing():
    scheduler = make()
    group = add(scheduler, "A", num_prompt=5, num_generated=1)
    step(scheduler)
    scheduler.remove(group)
    assert (scheduler.has_unfinished, scheduler.block_pool.num_used) == (False, 0)


def test_an_abort_in_the_middle_of_a_step_is_safe():
    scheduler = make()
    a, _ = add(scheduler, "A", num_prompt=5), add(scheduler, "B", num_prompt=5)
    plan = scheduler.schedule()
    scheduler.remove(a)
    scheduler.update(plan)
    scheduler.check_integrity()
    assert names(scheduler.running) == ["B"]


# ---- a step that fails -----------------------------------------------------------------------------------------------


def test_the_sequences_of_a_failed_step_are_computed_again_in_the_same_order():
    scheduler = make(max_num_seqs=3)
    for name in "ABCD":
        add(scheduler, name, num_prompt=2)
    step(scheduler)
    scheduler.schedule()
    scheduler.recompute_all()  # the model raised: nobody knows what is in the new slots
    assert (names(scheduler.running), names(scheduler.waiting)) == ([], ["A", "B", "C", "D"])
    assert scheduler.block_pool.num_used == 0
    assert step(scheduler) == [("A", 0, 3), ("B", 0, 3), ("C", 0, 3)]


def test_a_request_that_had_finished_when_the_step_failed_is_not_run_again():
    scheduler = make()
    a, b = add(scheduler, "A", num_prompt=2, num_generated=1), add(scheduler, "B", num_prompt=2)
    text = a.leader
    scheduler.update(scheduler.schedule())
    scheduler.finish(a, text)  # and then, before B has its token, something breaks
    scheduler.recompute_all()
    assert (names(scheduler.running), len(text.block_table)) == ([], 0)
    assert names(scheduler.waiting) == [b.group_id]
    assert step(scheduler) == [("B", 0, 2)]


# ---- settings that make no sense -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", None, True], ids=repr)
@pytest.mark.parametrize("name", ["max_num_seqs", "max_num_batched_tokens"])
def test_limits_are_whole_numbers_of_at_least_1(name, value):
    with pytest.raises(ConfigurationError, match=f"{name}.*{value!r}"):
        make(**{name: value})
