"""Lesson 9: a scheduler in a small pool runs beside minipage's, under the same traffic."""

from hypothesis import given
from hypothesis import strategies as st

from minipage.learn.graders.common import programs, run_machine
from minipage.learn.graders.scheduler_machine import machine
from minipage.learn.graders.traffic import Request, Setup, arrivals, run, setups_of

QUICK = programs(60)
small = setups_of(num_blocks=st.integers(3, 7), max_num_batched_tokens=st.integers(2, 6))
swap = st.sampled_from(["swap", "auto"])


def with_methods(impl, *names):
    """minipage's scheduler with some of the learner's methods, and whatever they have added."""
    theirs = impl.Preempting
    base = theirs.__mro__[1]
    kept = {k: v for k, v in vars(theirs).items() if k in names or k not in vars(base)}
    return type("Preempting", (base,), {k: v for k, v in kept.items() if k not in ("__dict__", "__weakref__")})


def test_9_1_one_victim_may_not_be_enough(impl):
    four = [
        [Request(2, 2, n=2), Request(1, 2), Request(1, 2), Request(1, 2)]
    ]  # the first two samples take a block each
    run(impl, with_methods(impl, "_make_room"), Setup(num_blocks=4, max_num_seqs=5), four)


@QUICK
@given(setup=small, arrivals=arrivals)
def test_9_1_make_room(impl, setup, arrivals):
    run(impl, with_methods(impl, "_make_room"), setup, arrivals)


@QUICK
@given(setup=small, arrivals=arrivals)
def test_9_2_preempt_by_recomputation(impl, setup, arrivals):
    run(impl, with_methods(impl, "preempt"), setup, arrivals)


@QUICK
@given(setup=small, arrivals=arrivals, preemption=swap, num_swap_blocks=st.integers(1, 7))
def test_9_3_preempt_by_swapping(impl, setup, arrivals, preemption, num_swap_blocks):
    setup = setup._replace(preemption=preemption, num_swap_blocks=num_swap_blocks)
    run(impl, with_methods(impl, "preempt"), setup, arrivals)


@QUICK
@given(setup=small, arrivals=arrivals, preemption=swap, num_swap_blocks=st.integers(1, 7), seats=st.integers(2, 4))
def test_9_4_swap_in(impl, setup, arrivals, preemption, num_swap_blocks, seats):
    setup = setup._replace(preemption=preemption, num_swap_blocks=num_swap_blocks, max_num_seqs=seats)
    run(impl, impl.Preempting, setup, arrivals)


def test_9_4_all_together(impl):
    """Random traffic with samples, beams, priorities and prefixes, carried out on dictionaries."""
    run_machine(impl, machine(Scheduler=impl.Preempting), count=25)
