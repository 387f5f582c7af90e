"""Lesson 9: a scheduler in a small pool runs beside minipage's, under the same traffic."""

from minipage.learn.graders.admissions import (  # noqa: F401 (9.5 is judged there)
    test_9_5_cached_blocks,
    test_9_5_seats,
    test_9_5_the_first_chunk,
    test_9_5_the_watermark,
    test_9_5_the_whole_prompt,
    test_9_5_what_can_never_fit,
    test_9_5_who_was_preempted_comes_back,
    test_9_5_with_everything,
    test_9_5_without_waiting_for_ever,
)
from minipage.learn.graders.common import passes, remembered, run_machine
from minipage.learn.graders.scripts import search
from minipage.learn.graders.traffic import Request, Setup, run, with_methods
from minipage.promises.scheduler_machine import machine

METHODS = ("_make_room", "preempt", "_swap_in")


def with_only(impl, *names):
    """minipage's scheduler, with these methods of the learner's, and whatever else the class has."""
    others = [name for name in METHODS if name not in names]
    return with_methods(impl.Preempting, names, others)


def test_9_1_one_victim_may_not_be_enough(impl):
    four = [
        [Request(2, 2, n=2), Request(1, 2), Request(1, 2), Request(1, 2)]
    ]  # the first two samples take a block each
    run(impl, with_only(impl, "_make_room"), Setup(num_blocks=4, max_num_seqs=5), four)


@remembered
def test_9_1_make_room(impl):
    search(impl, with_only(impl, "_make_room"), num_blocks=(3, 8))


@remembered
def test_9_2_preempt_by_recomputation(impl):
    search(impl, with_only(impl, "preempt"), num_blocks=(3, 8), preemption=["recompute"])


def test_9_2_who_is_more_urgent_stays_before_it(impl):
    setup = Setup(num_blocks=4, policy="priority", max_num_batched_tokens=8)
    arrivals = [[Request(2, 5), Request(2, 5, priority=1)], [], [Request(4, 1)]]
    run(impl, with_only(impl, "preempt"), setup, arrivals)


def test_9_3_there_may_be_no_swap_pool(impl):
    pair = [[Request(2, 4, n=2), Request(2, 4, n=2)]]
    run(impl, with_only(impl, "preempt"), Setup(num_blocks=7, max_num_seqs=6, preemption="auto"), pair)


def test_9_3_what_counts_is_how_many_sequences_there_are(impl):
    """Beams begin as one, and are preempted while they are."""
    setup = Setup(12, 1, max_num_batched_tokens=2, preemption="auto", num_swap_blocks=12)
    run(impl, with_only(impl, "preempt"), setup, [[Request(2, 7), Request(6, 2, n=3, beams=True)]])


@remembered
def test_9_3_preempt_by_swapping(impl):
    search(impl, with_only(impl, "preempt"), num_blocks=(3, 8), preemption=["swap", "auto"])


def test_9_4_several_come_back_in_one_step(impl):
    setup = Setup(num_blocks=10, block_size=1, max_num_seqs=5, preemption="swap", num_swap_blocks=12)
    run(impl, with_only(impl, "_swap_in"), setup, [[Request(3, 7), Request(2, 4), Request(1, 4), Request(1, 4)]])


def test_9_4_also_when_the_budget_is_used_up(impl):
    setup = Setup(num_blocks=10, block_size=1, max_num_batched_tokens=2, preemption="swap", num_swap_blocks=12)
    run(impl, with_only(impl, "_swap_in"), setup, [[Request(3, 7), Request(2, 4), Request(1, 4), Request(1, 4)]])


def test_9_4_swap_in(impl):
    search(impl, with_only(impl, "_swap_in"), num_blocks=(3, 8), preemption=["swap", "auto"])


def test_9_4_seats_count(impl):
    swap = Setup(9, 2, 8, 8, preemption="swap", num_swap_blocks=12)
    arrivals = [[Request(1, 6), Request(3, 5, n=2), Request(1, 5)]]
    run(impl, with_only(impl, "_swap_in"), swap, arrivals, squeezed=2)
    swap = Setup(6, 4, 6, 8, preemption="swap", num_swap_blocks=3)
    beams = Request(5, 3, n=3, beams=True, salt="salt")
    run(impl, with_only(impl, "_swap_in"), swap, [[Request(1, 5)], [Request(3, 5), beams]], squeezed=3)


def test_9_4_swap_in_with_more_room(impl):
    search(impl, with_only(impl, "_swap_in"), preemption=["swap"])


def test_9_4_all_together(impl):
    """Random traffic with samples, beams, priorities and prefixes, carried out on dictionaries."""
    others = test_9_1_make_room, test_9_2_preempt_by_recomputation, test_9_3_preempt_by_swapping
    if all(passes(impl, grader) for grader in others):  # otherwise it has been said what is wrong
        run_machine(impl, machine(Scheduler=with_only(impl, *METHODS)), count=25)
