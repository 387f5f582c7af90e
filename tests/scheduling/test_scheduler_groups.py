"""How a request of several sequences runs: the prompt is computed once, then all go on together, sharing blocks."""

import pytest

from minipage.errors import InvalidRequestError
from minipage.memory import BlockCopy
from minipage.promises.scheduling_examples import add, blocks, finish_step, make, names, step, written
from minipage.scheduling import GroupStatus

# ---- samples ---------------------------------------------------------------------------------------------------------


def test_the_leader_computes_the_prompt_and_then_every_sample_gets_its_own_token():
    scheduler = make()
    group = add(scheduler, "A", num_prompt=5, n=3)
    plan = scheduler.schedule()
    [chunk] = plan.chunks
    assert written(plan) == [("A.0", 0, 5)], "5 tokens are computed, not 15"
    assert [seq.seq_id for seq in chunk.receivers] == ["A.0", "A.1", "A.2"], "one row of logits, three draws"
    finish_step(scheduler, plan)
    assert blocks(group) == [[0, 1]] * 3
    assert [seq.token_ids[5:] for seq in group.sequences] == [[5], [105], [205]]


def test_the_paper_s_figure_8_in_a_step():
    """Both samples go on in the same step: the first writer copies block 1, the last writes in place."""
    scheduler = make()
    group = add(scheduler, "A", num_prompt=7, n=2)
    step(scheduler)
    assert (blocks(group), scheduler.block_pool.num_used) == ([[0, 1], [0, 1]], 2)
    plan = scheduler.schedule()
    assert written(plan) == [("A.0", 7, 1), ("A.1", 7, 1)]
    assert plan.copies == [BlockCopy(source=1, destination=2)]
    assert (blocks(group), scheduler.block_pool.num_used) == ([[0, 2], [0, 1]], 3)


def test_three_samples_take_two_copies():
    scheduler = make()
    group = add(scheduler, "A", num_prompt=6, n=3)
    step(scheduler)
    assert scheduler.schedule().copies == [BlockCopy(1, 2), BlockCopy(1, 3)]
    assert blocks(group) == [[0, 2], [0, 3], [0, 1]]


def test_a_prompt_that_ends_with_its_block_is_never_copied():
    scheduler = make()
    group = add(scheduler, "A", num_prompt=8, n=2)
    step(scheduler)
    assert scheduler.schedule().copies == []
    assert blocks(group) == [[0, 1, 2], [0, 1, 3]]


def test_a_long_prompt_is_computed_in_chunks_before_anybody_forks():
    scheduler = make(max_num_batched_tokens=4)
    group = add(scheduler, "A", num_prompt=10, n=2)
    for chunk in [("A.0", 0, 4), ("A.0", 4, 4)]:
        assert step(scheduler) == [chunk]
        assert group.is_sharing and not len(group.sequences[1].block_table)
    assert step(scheduler) == [("A.0", 8, 2)]
    assert not group.is_sharing and blocks(group) == [[0, 1, 2]] * 2
    assert step(scheduler) == [("A.0", 10, 1), ("A.1", 10, 1)]


def test_a_sample_that_is_complete_gives_back_only_what_the_others_do_not_share():
    scheduler = make()
    group = add(scheduler, "A", num_prompt=6, n=2)
    step(scheduler)
    step(scheduler)
    first, second = group.sequences
    assert blocks(group) == [[0, 2], [0, 1]]
    scheduler.finish(group, first)
    assert (group.sequences, group.status) == ([second], GroupStatus.RUNNING)
    assert (list(second.block_table), scheduler.block_pool.num_used) == ([0, 1], 2)
    scheduler.finish(group, second)
    assert (group.status, scheduler.has_unfinished, scheduler.block_pool.num_used) == (GroupStatus.FINISHED, False, 0)


# ---- beams -----------------------------------------------------------------------------------------------------------


def test_beams_branch_and_die_and_their_blocks_with_them():
    scheduler = make(block_size=2)
    group = add(scheduler, "A", num_prompt=4, width=3)
    plan = scheduler.schedule()
    scheduler.update(plan)
    a = group.leader  # three children: one takes the place of the parent
    b, c = a.fork("b"), a.fork("c")
    for seq in (a, b, c):
        seq.token_ids.append(1)
    group.sequences = [a, b, c]
    assert blocks(group) == [[0, 1]] * 3 and scheduler.block_pool.num_used == 2

    scheduler.update(scheduler.schedule())
    assert blocks(group) == [[0, 1, 2], [0, 1, 3], [0, 1, 4]]
    d = b.fork("d")  # now two children of b, one of c, none of a
    group.sequences = [b, d, c, a]
    scheduler.finish(group, a)
    for seq in (b, d, c):
        seq.token_ids.append(1)
    assert (group.sequences, scheduler.block_pool.ref_count(2)) == ([b, d, c], 0)

    plan = scheduler.schedule()
    assert (written(plan), plan.copies) == ([("b", 5, 1), ("d", 5, 1), ("c", 5, 1)], [(3, 5)])
    assert blocks(group) == [[0, 1, 5], [0, 1, 3], [0, 1, 4]]
    scheduler.check_integrity()


# ---- together, or not at all -----------------------------------------------------------------------------------------


def test_a_group_that_does_not_fit_into_what_is_left_of_the_step_waits_for_the_next():
    scheduler = make(max_num_batched_tokens=5)
    add(scheduler, "A", num_prompt=1, num_generated=3, n=3)
    add(scheduler, "B", num_prompt=1, num_generated=3, n=3)
    assert step(scheduler) == [("A.0", 0, 1), ("B.0", 0, 1)]
    for start in (1, 2):
        assert step(scheduler) == [(f"A.{i}", start, 1) for i in range(3)], "two tokens are left: too few for three"
    assert step(scheduler) == [(f"B.{i}", 1, 1) for i in range(3)]


def test_a_group_takes_a_seat_for_every_sequence_it_may_have():
    scheduler = make(max_num_seqs=4)
    add(scheduler, "beams", num_prompt=1, width=3)
    add(scheduler, "samples", num_prompt=1, n=2)
    assert step(scheduler) == [("beams", 0, 1)]
    assert names(scheduler.waiting) == ["samples"], "one seat is left, and it needs two"


def test_a_preempted_group_goes_as_a_whole():
    scheduler = make(num_blocks=6, block_size=2)
    add(scheduler, "A", num_prompt=4, num_generated=8)
    b = add(scheduler, "B", num_prompt=3, num_generated=3, n=2)
    step(scheduler)
    assert blocks(b) == [[2, 3], [2, 3]]
    step(scheduler)
    assert blocks(b) == [[2, 5], [2, 3]]
    plan = scheduler.schedule()
    assert (names(plan.preempted), blocks(b)) == (["B"], [[], []])
    assert [len(seq.token_ids) for seq in b.sequences] == [5, 5], "all keep their tokens"


def test_a_group_that_starts_again_shares_what_its_texts_still_have_in_common():
    scheduler = make(block_size=2)
    group = add(scheduler, "A", num_prompt=3, n=2)
    step(scheduler)
    step(scheduler)
    step(scheduler)  # now each has three tokens of its own: 3 to 5
    scheduler.recompute_all()
    assert (group.shared_len, group.is_sharing) == (3, True)
    assert step(scheduler) == [("A.0", 0, 3)]
    assert step(scheduler) == [("A.0", 3, 2), ("A.1", 3, 2)], "what they do not share, but for the last token"
    assert step(scheduler) == [("A.0", 5, 1), ("A.1", 5, 1)], "and then all get their next token in one step"


def test_followers_that_catch_up_one_after_the_other_copy_what_another_still_reads():
    """The budget is enough for one: it is not the last reader of the shared block, although the only writer."""
    scheduler = make(block_size=4, max_num_batched_tokens=3)
    group = add(scheduler, "A", num_prompt=2, n=2)
    for _ in range(4):
        step(scheduler)
    scheduler.recompute_all()
    assert step(scheduler) == [("A.0", 0, 2)]
    [[shared], _] = blocks(group)
    plan = scheduler.schedule()
    [[own, _], _] = blocks(group)
    assert (written(plan), plan.copies) == ([("A.0", 2, 3)], [BlockCopy(shared, own)])
    finish_step(scheduler, plan)
    plan = scheduler.schedule()
    assert (written(plan), plan.copies) == ([("A.1", 2, 3)], [])
    assert [table[0] for table in blocks(group)] == [own, shared]


def test_a_step_that_failed_between_two_samples_loses_nothing():
    """One sample has its token, the other does not: it has to get it from the logits of its own last token."""
    scheduler = make()
    group = add(scheduler, "A", num_prompt=3, n=2)
    scheduler.update(scheduler.schedule())
    group.sequences[0].token_ids.append(3)  # and then Ctrl-C
    scheduler.recompute_all()
    for _ in range(3):
        plan = scheduler.schedule()
        for chunk in plan.chunks:
            seq, start, num_tokens = chunk.seq, chunk.start, chunk.num_tokens
            assert start + num_tokens <= len(seq.token_ids), f"{seq} has no token {start + num_tokens - 1}"
        finish_step(scheduler, plan)
    assert all(len(seq.token_ids) > 3 for seq in group.sequences)


# ---- what can never run ----------------------------------------------------------------------------------------------


def test_a_group_that_could_not_run_even_alone_is_refused_when_it_is_added():
    scheduler = make(num_blocks=8, block_size=2, max_num_seqs=4, max_num_batched_tokens=3)
    with pytest.raises(InvalidRequestError, match="4 sequences go on together, but a step has room for 3"):
        add(scheduler, "too many", num_prompt=1, num_generated=1, n=4)
    with pytest.raises(InvalidRequestError, match=r"3 sequences of up to 9, takes 10 blocks of 2, but .* has 8"):
        add(scheduler, "too long", num_prompt=3, num_generated=6, n=3)
    add(scheduler, "fits", num_prompt=4, num_generated=5, n=3)  # the 2 blocks of the prompt once, 2 more for each
    while scheduler.has_unfinished:
        assert step(scheduler)
