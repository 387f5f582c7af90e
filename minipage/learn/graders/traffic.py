"""Two schedulers under the same traffic, minipage's own and a learner's, which must plan the same steps.

Everything about a plan is fixed by what is promised (who comes first, who is let in, who gives way, how many tokens),
so the plans are compared whole; and the texts, of which nothing may be lost.
"""

from typing import NamedTuple

from hypothesis import strategies as st

from minipage.learn.graders.common import expect
from minipage.learn.graders.scheduling_examples import add, finish_step, written
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool
from minipage.scheduling import Scheduler


class Request(NamedTuple):
    num_prompt: int
    num_generated: int
    n: int = 1


class Setup(NamedTuple):
    num_blocks: int = 6
    block_size: int = 2
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 6
    watermark: float = 0.0
    preemption: str = "recompute"
    num_swap_blocks: int = 0


requests = st.builds(Request, st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 1, 1, 2]))
arrivals = st.lists(st.lists(requests, max_size=3), min_size=1, max_size=4)  # before each of the first steps


def setups_of(**strategies):
    """Setups in which some numbers are drawn, and the others as they are by default."""
    return st.fixed_dictionaries(strategies).map(lambda drawn: Setup(**drawn))


def scheduler_of(cls, setup):
    options = setup._asdict()
    swap = options.pop("num_swap_blocks")
    pool = BlockPool(options.pop("num_blocks"), options.pop("block_size"))
    swap_pool = BlockPool(swap, pool.block_size) if swap else None
    return cls(pool, options.pop("max_num_seqs"), options.pop("max_num_batched_tokens"), swap_pool=swap_pool, **options)


def run(impl, cls, setup, arrivals, most_steps=60):
    """Run both beside each other until all is done."""
    impl.diary.begin()
    changed = {name: value for name, value in setup._asdict().items() if value}
    impl.diary.note(", ".join(f"{name}={value}" for name, value in changed.items()))
    theirs, ours = scheduler_of(cls, setup), scheduler_of(Scheduler, setup)
    arrivals, names = [*arrivals], iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for number in range(1, most_steps):
        for request in arrivals.pop(0) if arrivals else ():
            request = fitting(request, setup)
            name = next(names)
            again = f", {request.n} samples" if request.n > 1 else ""
            impl.diary.note(f"{name} arrives: {request.num_prompt} prompt tokens, {request.num_generated} more{again}")
            for scheduler in (theirs, ours):
                add(scheduler, name, request.num_prompt, request.num_generated, request.n)
        if not ours.has_unfinished and not arrivals:
            return
        due = ours.schedule()
        before = [group.group_id for group in theirs.running]
        plan = theirs.schedule()
        impl.diary.note(f"step {number}: {shown(plan)}")
        compare(setup, before, plan, due, theirs, ours)
        finish_step(ours, due)
        finish_step(theirs, plan)
        compare_texts(theirs, ours)


def fitting(request, setup):
    """A request that the pool could hold alone, and the seats."""
    n = min(request.n, setup.max_num_seqs, setup.max_num_batched_tokens)
    room = (setup.num_blocks // n) * setup.block_size
    num_prompt = min(request.num_prompt, room - 1)
    return Request(num_prompt, min(request.num_generated, room - num_prompt), n)


def shown(plan):
    chunks = ", ".join(f"{name} tokens {start}-{start + num - 1}" for name, start, num in written(plan)) or "nothing"
    for what in ("preempted", "swap_out", "swap_in"):
        if there := getattr(plan, what):
            names = [group.group_id for group in there] if what == "preempted" else [tuple(pair) for pair in there]
            chunks += f"; {what} {names}"
    return chunks


def names_of(groups):
    return [group.group_id for group in groups]


def compare(setup, before, plan, due, theirs, ours):
    total, budget = sum(chunk.num_tokens for chunk in plan.chunks), setup.max_num_batched_tokens
    if total > budget:
        raise Wrong(
            "A step computes no more than max_num_batched_tokens: the budget shrinks with every chunk.", budget, total
        )
    why = (
        "The last in the running list gives way first, one after the other, and only until there is room for the group "
        "whose turn it is; if it is the last itself, it gives way itself."
    )
    expect("who is preempted", names_of(plan.preempted), names_of(due.preempted), why)
    why = (
        "A preempted group waits (to be computed again), or is swapped out if that is wanted and the swap pool has "
        "room for all its blocks. Without room it is computed again: waiting for swap space, the engine stood still "
        "for ever (vLLM #546)."
    )
    expect("who is swapped out", names_of(theirs.swapped), names_of(ours.swapped), swapped_why(plan, due, why))
    expect("blocks swapped out", len(plan.swap_out), len(due.swap_out), why)
    expect("blocks swapped in", len(plan.swap_in), len(due.swap_in), swapped_why(plan, due, why))
    chunks, expected = written(plan), written(due)
    expect("who runs", names_of(theirs.running), names_of(ours.running), admitted_why(before, plan, theirs, ours))
    expect(
        "who waits", names_of(theirs.waiting), names_of(ours.waiting), "Who does not run waits, in order of arrival."
    )
    why = (
        "Each chunk is (sequence, first token, number of tokens). Those who run are computed first, in order, then "
        "those who come in; each gets what it wants, or what is left of the budget."
    )
    if [name for name, _, _ in chunks[: len(before)]] != [name for name, _, _ in expected[: len(before)]]:
        why += " With newcomers first, a stream of new prompts would starve whoever runs (as nano-vllm does)."
    expect("the plan", chunks, expected, why)
    why = (
        "Whoever is preempted gives its blocks back, and every planned token has a slot: no more, no fewer are in use."
    )
    expect("free blocks", theirs.block_pool.num_free, ours.block_pool.num_free, why)
    if theirs.swap_pool:
        expect("free swap blocks", theirs.swap_pool.num_free, ours.swap_pool.num_free, why)


def swapped_why(plan, due, otherwise):
    if len(plan.swap_in) == len(due.swap_in):
        return otherwise
    return (
        "The first who was swapped out comes back as soon as all its blocks and those for its next tokens are free, "
        "and there are seats; not earlier, not later, and nobody behind it comes first."
    )


def admitted_why(before, plan, theirs, ours):
    if plan.preempted:
        return "In a step that had to preempt somebody, nobody comes in: the blocks would be missing again at once."
    extra = set(names_of(theirs.running)) - set(names_of(ours.running))
    if ours.swapped and extra:
        return "Nobody is admitted while anybody is swapped out: those have been served before, and want their blocks."
    if extra:
        return (
            "Somebody was let in too early: there must be budget, a seat for each of its sequences, blocks for all the "
            "tokens it has now, and nobody before it who has to wait."
        )
    return "Somebody has to wait although there are tokens, seats and blocks for it."


def compare_texts(theirs, ours):
    def texts(scheduler):
        groups = [*scheduler.running, *scheduler.waiting, *scheduler.swapped]
        return {seq.seq_id: len(seq.token_ids) for group in groups for seq in group.sequences}

    def preempted(scheduler):
        groups = [*scheduler.running, *scheduler.waiting, *scheduler.swapped]
        return {group.group_id: group.num_preemptions for group in groups}

    why = (
        "A text that was preempted keeps every token, the generated ones too (they may have been read already); only K "
        "and V are computed again. Engines have lost them (nano-vllm #103)."
    )
    expect("the number of tokens of each text", texts(theirs), texts(ours), why)
    expect("num_preemptions", preempted(theirs), preempted(ours), "preempt() counts, for the statistics.")
