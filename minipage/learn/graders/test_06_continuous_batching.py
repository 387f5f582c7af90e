"""Lesson 6: a scheduler runs beside minipage's, under the same traffic."""

from random import Random

from hypothesis import strategies as st

from minipage.learn.graders.common import expect, passes, remembered, run_machine
from minipage.learn.graders.drawn import given, programs
from minipage.learn.graders.pools import state_of
from minipage.learn.graders.scripts import script, search
from minipage.learn.graders.traffic import Request, Setup, run, scheduler_of, with_methods
from minipage.learn.judge import Wrong
from minipage.memory import BlockTable
from minipage.promises.scheduler_machine import machine
from minipage.scheduling import Admission, Scheduler, Sequence, SequenceGroup

QUICK = programs(120)


METHODS = ("admission", "_admit", "schedule")


def with_only(impl, *names):
    """minipage's scheduler, with these methods of the learner's, and whatever else the class has."""
    others = [name for name in METHODS if name not in names]
    return with_methods(impl.ContinuousBatching, names, others)


def check_share_out(impl, wanted, budget):
    lent, left, due = list(wanted), budget, []
    for num_tokens in wanted:
        due.append(min(num_tokens, left))
        left -= due[-1]
    call = f"share_out({wanted}, {budget})"
    impl.diary.begin()
    impl.diary.note(call)
    why = "In order, each gets what it wants or what is left; the budget shrinks with every token, and not below 0."
    expect(call, impl.share_out(lent, budget), due, why)
    expect("the list afterwards", lent, wanted, "The list that was handed in belongs to somebody else: make a new one.")


def test_6_1_the_example(impl):
    check_share_out(impl, [1, 1, 10, 5], 8)


def test_6_1_large_numbers(impl):
    check_share_out(impl, [100, 200, 300], 500)
    check_share_out(impl, [1, 100_000, 3_000_000_000, 5], 2**32)


@QUICK
@given(wanted=st.lists(st.integers(0, 9), max_size=6), budget=st.integers(0, 30))
def test_6_1_share_out(impl, wanted, budget):
    check_share_out(impl, wanted, budget)


def group_of(scheduler, num_prompt, num_generated, n=1, so_far=(), beams=False):
    """A request of `n` samples or beams, which begin as one sequence; `so_far`: how many tokens each sequence has
    generated before it was preempted."""
    names = [f"A{i}" for i in range(1 if beams else n)]
    sequences = [Sequence(name, list(range(num_prompt)), BlockTable(scheduler.block_pool)) for name in names]
    group = SequenceGroup("A", sequences, num_prompt + num_generated, n)
    for i, (seq, num_tokens) in enumerate(zip(sequences, so_far)):
        seq.token_ids += [100 * i + j for j in range(num_tokens)]
    group.restart(scheduler.block_pool)
    return group


def check_admission(impl, words, due, group, cached=(), setup=None, used=0, others=0, swapped=0):
    """others: how many sequences run already; swapped: how many are swapped out. `words` describe the case,
    and end with the reason."""
    impl.diary.begin()
    scheduler = scheduler_of(with_only(impl, "admission"), setup or Setup(num_blocks=8))
    case, why = words
    impl.diary.note(case)
    scheduler.block_pool.allocate_many(used)
    ask(scheduler, group_of(scheduler, *group), [*cached], due, why, others, swapped)


def ask(scheduler, group, cached, due, why, others, swapped=0):
    pool = scheduler.block_pool
    scheduler.running += strangers("R", others, pool)
    scheduler.swapped += strangers("S", swapped, scheduler.swap_pool or pool)
    before, lent = (state_of(pool), list(scheduler.running), list(scheduler.waiting)), list(cached)
    expect("admission(group, cached)", scheduler.admission(group, lent), due, why)
    after = state_of(pool), list(scheduler.running), list(scheduler.waiting)
    if after != before or lent != cached:
        raise Wrong("admission is a question: it starts nobody, takes no block, and changes no list.")


def strangers(name, count, pool):
    return [SequenceGroup(f"{name}{i}", [Sequence(name, [1], BlockTable(pool))], 9) for i in range(count)]


def test_6_2_what_can_never_fit_is_never_admitted(impl):
    words = (
        "pool: 8 blocks of 2. prompt 4, up to 16 more, so 10 blocks in the end",
        "It could grow to 10 blocks (group.max_blocks), and the whole pool has 8: it would be preempted for ever. The "
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


def test_6_2_those_swapped_out_do_not_run(impl):
    setup = Setup(num_blocks=8, watermark=0.25, preemption="swap", num_swap_blocks=4)
    why = (
        "Somebody is swapped out, but nobody runs, so nobody can run dry: the watermark is for those in self.running. "
        "Whether newcomers have to wait for those swapped out is asked by `schedule`, not here."
    )
    words = ("8 blocks of 2, watermark 2, 3 free, nobody runs, somebody is swapped out. prompt 6", why)
    check_admission(impl, words, Admission.NOW, (6, 2), setup=setup, used=5, swapped=1)


def test_6_2_every_sequence_needs_a_seat(impl):
    setup = Setup(num_blocks=8, max_num_seqs=3)
    for others, due in ((1, Admission.NOW), (2, Admission.LATER)):
        words = (
            f"max_num_seqs=3, {others} running. a group of 2 samples, prompt 2",
            "A group joins with all its sequences (group.max_num_seqs), or not at all: see self._seats_left().",
        )
        check_admission(impl, words, due, (2, 2, 2), setup=setup, others=others)
        words = (
            f"max_num_seqs=3, {others} running. a group of 2 beams, which is one sequence at first, prompt 2",
            "There will be as many as group.max_num_seqs says, and each will need a seat: see self._seats_left().",
        )
        check_admission(impl, words, due, (2, 2, 2, (), True), setup=setup, others=others)


@remembered
@programs(200)
@given(
    seed=st.integers(0, 99),
    used=st.integers(0, 12),
    num_prompt=st.integers(1, 12),
    num_generated=st.integers(1, 12),
    n=st.integers(1, 3),
    so_far=st.lists(st.integers(0, 6), max_size=1),
    cached=st.lists(st.integers(0, 11), max_size=4, unique=True),
    others=st.integers(0, 4),
    swapped=st.integers(0, 2),
    beams=st.booleans(),
)
def test_6_2_admission(impl, seed, used, num_prompt, num_generated, n, so_far, cached, others, swapped, beams):
    impl.diary.begin()
    setup, _ = script(Random(seed))
    so_far = [min(num, num_generated - 1) for num in so_far] * n
    theirs, ours = (scheduler_of(cls, setup) for cls in (with_only(impl, "admission"), Scheduler))
    for scheduler in (theirs, ours):
        scheduler.block_pool.allocate_many(min(used, setup.num_blocks))
    request = num_prompt, num_generated, n, so_far, beams
    group = group_of(ours, *request)
    most = group.shared_len // setup.block_size
    cached = [block for block in cached if block < setup.num_blocks][:most]
    ours.running += strangers("R", others, ours.block_pool)
    due = ours.admission(group, cached)
    pool = theirs.block_pool
    free = [block for block in cached if not pool.ref_count(block)]
    impl.diary.note(f"{setup.num_blocks} blocks of {setup.block_size}, {pool.num_free} of them free")
    impl.diary.note(
        f"max_num_seqs={setup.max_num_seqs}, {others} run, {swapped} are swapped out, "
        f"watermark {theirs.watermark_blocks} blocks"
    )
    impl.diary.note(
        f"the group: {n} {'beams' if beams else 'sequence(s)'}, prompt {num_prompt}, "
        f"up to {num_generated} more, so far {so_far}"
    )
    impl.diary.note(f"cached={cached}" + f", of which {free} are free" * bool(free))
    why = (
        f"It could grow to {group.max_blocks(setup.block_size)} blocks; to start it takes "
        f"{group.blocks_to_start(setup.block_size)}, less {len(cached) - len(free)} that are cached and in use. While "
        "others run the watermark stays free, and every sequence needs a seat."
    )
    ask(theirs, group_of(theirs, *request), cached, due, why, others, swapped)


LONG_FIRST = [[Request(6, 1)], [Request(6, 1), Request(1, 1)], [Request(1, 1)]]


def test_6_3_nobody_overtakes(impl):
    run(impl, with_only(impl, "_admit"), Setup(num_blocks=4), LONG_FIRST)


def test_6_3_a_prefix_that_is_known_is_not_computed_again(impl):
    again = [[Request(6, 1)], [], [], [Request(9, 1)]]
    run(impl, with_only(impl, "_admit"), Setup(num_blocks=9, caching=True), again)


@remembered
def test_6_3_admit(impl):
    search(impl, with_only(impl, "_admit"))


def test_6_4_decodes_go_before_prompts(impl):
    stream = [[Request(2, 5)], *[[Request(6, 1)] for _ in range(4)]]
    run(impl, with_only(impl, "schedule"), Setup(num_blocks=30, max_num_batched_tokens=3), stream)


def test_6_4_nobody_is_admitted_while_somebody_is_swapped_out(impl):
    setup = Setup(max_num_batched_tokens=4, preemption="swap", num_swap_blocks=8)
    run(impl, with_only(impl, "schedule"), setup, [[Request(6, 3), Request(5, 1), Request(1, 1)]])


def test_6_4_who_was_swapped_out_needs_blocks_and_no_budget(impl):
    setup = Setup(8, 1, max_num_seqs=6, max_num_batched_tokens=3, preemption="swap", num_swap_blocks=24)
    arrivals = [[Request(1, 4), Request(1, 2, n=3)], [Request(2, 3)]]
    run(impl, with_only(impl, "schedule"), setup, arrivals)


def test_6_4_schedule(impl):
    search(impl, with_only(impl, "schedule"))


def test_6_4_all_together(impl):
    """Random traffic with samples, beams, priorities and prefixes, carried out on dictionaries."""
    if all(passes(impl, grader) for grader in (test_6_2_admission, test_6_3_admit)):  # or it has been said
        run_machine(impl, machine(Scheduler=with_only(impl, *METHODS)), count=25)
