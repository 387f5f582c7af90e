"""Lesson 6: a scheduler runs beside minipage's, under the same traffic."""

from hypothesis import given
from hypothesis import strategies as st

from minipage.learn.graders.common import every, expect, programs, run_machine
from minipage.learn.graders.scheduler_machine import machine
from minipage.learn.graders.traffic import Request, Setup, arrivals, run, scheduler_of, setups_of
from minipage.learn.judge import Wrong
from minipage.memory import BlockTable
from minipage.scheduling import Admission, Sequence, SequenceGroup

QUICK = programs(60)


@every(first=range(4), second=range(4), third=range(4), budget=range(8))
def test_6_1_share_out(impl, first, second, third, budget):
    wanted = [first, second, third]
    impl.diary.begin()
    impl.diary.note(f"share_out({wanted}, budget={budget})")
    due = [min(first, budget), min(second, max(0, budget - first)), min(third, max(0, budget - first - second))]
    why = "In order, each gets what it wants or what is left; the budget shrinks with every token, and not below 0."
    expect(f"share_out({wanted}, {budget})", impl.share_out(wanted, budget), due, why)
    if wanted != [first, second, third]:
        raise Wrong("The list that was handed in belongs to somebody else: make a new one.")


def group_of(scheduler, num_prompt, num_generated, n=1):
    sequences = [Sequence(f"A{i}", list(range(num_prompt)), BlockTable(scheduler.block_pool)) for i in range(n)]
    return SequenceGroup("A", sequences, num_prompt + num_generated, n)


def check_admission(impl, words, due, group, cached=(), setup=None, used=0, others=0):
    """others: how many sequences run already. `words` describe the case, and end with the reason."""
    impl.diary.begin()
    scheduler = scheduler_of(impl.ContinuousBatching, setup or Setup(num_blocks=8))
    case, why = words
    impl.diary.note(case)
    pool = scheduler.block_pool
    pool.allocate_many(used)
    for i in range(others):
        running = SequenceGroup(f"R{i}", [Sequence("R", [1], BlockTable(pool))], 9)
        scheduler.running.append(running)
    expect("admission(group, cached)", scheduler.admission(group_of(scheduler, *group), [*cached]), due, why)


def test_6_2_what_can_never_fit_is_never_admitted(impl):
    words = (
        "pool: 8 blocks of 2. prompt 4, up to 16 more, so 10 blocks in the end",
        "It could grow to 10 blocks (group.most_blocks), and the whole pool has 8: it would be preempted for ever. The "
        "last token is never stored.",
    )
    check_admission(impl, words, Admission.NEVER, (4, 16))
    check_admission(impl, ("pool: 8 blocks of 2. prompt 4, up to 13 more", words[1]), Admission.NOW, (4, 13))


def test_6_2_free_blocks_are_counted(impl):
    why = (
        "The prompt of 6 takes 3 blocks of 2 (group.blocks_to_start), so it may start when 3 are free, and not before."
    )
    for used, due in ((5, Admission.NOW), (6, Admission.LATER)):
        check_admission(impl, (f"8 blocks of 2, {8 - used} free. prompt 6", why), due, (6, 2), used=used)


def test_6_2_cached_blocks_in_use_need_no_room(impl):
    why = "Blocks 0 and 1 hold its beginning and are in use by others: it shares them, and needs 1 free block only."
    for used, due in ((7, Admission.NOW), (8, Admission.LATER)):
        words = (f"8 blocks of 2, {8 - used} free. prompt 6, cached=[0, 1], both in use", why)
        check_admission(impl, words, due, (6, 2), (0, 1), used=used)


def test_6_2_cached_blocks_that_are_free_count_as_needed(impl):
    why = (
        "Blocks 6 and 7 hold its beginning but lie in the free queue. They have to leave it, so they are not free for "
        "others any more: counted as a gift, too many are let in (vLLM has a test for it)."
    )
    for used, due in ((5, Admission.NOW), (6, Admission.LATER)):
        words = (f"8 blocks of 2, {8 - used} free. prompt 6, cached=[6, 7], both free", why)
        check_admission(impl, words, due, (6, 2), (6, 7), used=used)


def test_6_2_the_watermark_holds_while_others_run(impl):
    setup = Setup(num_blocks=8, watermark=0.25)
    why = "2 of the 8 blocks are the watermark: while somebody runs, a newcomer has to leave them free."
    words = ("8 blocks of 2, watermark 2, 4 free, somebody runs. prompt 6", why)
    check_admission(impl, words, Admission.LATER, (6, 2), setup=setup, used=4, others=1)
    words = ("8 blocks of 2, watermark 2, 5 free, somebody runs. prompt 6", why)
    check_admission(impl, words, Admission.NOW, (6, 2), setup=setup, used=3, others=1)
    words = ("8 blocks of 2, watermark 2, 3 free, nobody runs. prompt 6", "Nobody runs, so nobody can run dry.")
    check_admission(impl, words, Admission.NOW, (6, 2), setup=setup, used=5)


def test_6_2_every_sequence_needs_a_seat(impl):
    setup = Setup(num_blocks=8, max_num_seqs=3)
    for others, due in ((1, Admission.NOW), (2, Admission.LATER)):
        words = (
            f"max_num_seqs=3, {others} running. a group of 2 samples, prompt 2",
            "A group joins with all its sequences (group.max_num_seqs), or not at all: see self._seats_left().",
        )
        check_admission(impl, words, due, (2, 2, 2), setup=setup, others=others)


setups = setups_of(
    num_blocks=st.integers(4, 8),
    max_num_seqs=st.integers(2, 4),
    max_num_batched_tokens=st.integers(2, 8),
    watermark=st.sampled_from([0.0, 0.3]),
)


def with_methods(impl, *names):
    """minipage's scheduler with some of the learner's methods (and what they have given them)."""
    theirs = impl.ContinuousBatching
    base = theirs.__mro__[theirs.__mro__.index(theirs) + 1]
    kept = {name: value for name, value in vars(theirs).items() if name in names or name not in vars(base)}
    return type("ContinuousBatching", (base,), {k: v for k, v in kept.items() if k not in ("__dict__", "__weakref__")})


LONG_FIRST = [[Request(6, 1)], [Request(6, 1), Request(1, 1)], [Request(1, 1)]]


def test_6_3_nobody_overtakes(impl):
    run(impl, with_methods(impl, "admission", "_admit"), Setup(num_blocks=4), LONG_FIRST)


@QUICK
@given(setup=setups, arrivals=arrivals)
def test_6_3_admit(impl, setup, arrivals):
    run(impl, with_methods(impl, "admission", "_admit"), setup, arrivals)


def test_6_4_decodes_go_before_prompts(impl):
    stream = [[Request(2, 5)], *[[Request(6, 1)] for _ in range(4)]]
    run(impl, impl.ContinuousBatching, Setup(num_blocks=30, max_num_batched_tokens=3), stream)


def test_6_4_nobody_is_admitted_while_somebody_is_swapped_out(impl):
    setup = Setup(max_num_batched_tokens=4, preemption="swap", num_swap_blocks=8)
    run(impl, impl.ContinuousBatching, setup, [[Request(6, 3), Request(5, 1), Request(1, 1)]])


@QUICK
@given(setup=setups, arrivals=arrivals, swap=st.booleans())
def test_6_4_schedule(impl, setup, arrivals, swap):
    if swap:
        setup = setup._replace(preemption="swap", num_swap_blocks=8)
    run(impl, impl.ContinuousBatching, setup, arrivals)


def test_6_4_all_together(impl):
    """Random traffic with samples, beams, priorities and prefixes, carried out on dictionaries."""
    run_machine(impl, machine(Scheduler=impl.ContinuousBatching), count=25)
