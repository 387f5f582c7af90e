"""Who may come in: exercise 9.5, question by question, and then whole runs beside minipage's own schedulers."""

from itertools import product
from random import Random

from minipage.learn.graders.common import expect, passes, remembered
from minipage.learn.graders.pools import state_of
from minipage.learn.judge import Wrong
from minipage.memory import BlockPool, BlockTable
from minipage.promises.scheduling_examples import add, step
from minipage.scheduling import Admission, Scheduler, Sequence, SequenceGroup
from minipage.scheduling.first_chunk import FirstChunkScheduler


def group_of(pool, num_prompt, num_more=2, num_written=0):
    """A request that may get `num_more` tokens, of which it had `num_written` when it was preempted."""
    group = SequenceGroup("A", [Sequence("A", [1] * num_prompt, BlockTable(pool))], num_prompt + num_more)
    group.leader.token_ids += [2] * num_written
    group.restart(pool)
    return group


def ask(impl, due, why, num_blocks=12, size=2, used=0, num_prompt=6, others=0, watermark=0.0, reserve=True, left=64,
        cached=(), max_num_seqs=4, num_more=2, num_written=0):  # fmt: skip
    impl.diary.begin()
    pool = BlockPool(num_blocks, size)
    scheduler = impl.Admitting(pool, max_num_seqs, 64, watermark=watermark)
    scheduler.reserve_full, scheduler.tokens_left = reserve, left
    pool.allocate_many(used)
    scheduler.running = [group_of(pool, 1) for _ in range(others)]
    group, cached = group_of(pool, num_prompt, num_more, num_written), list(cached)
    free = [block for block in cached if not pool.ref_count(block)]
    written = f", of which {num_written} are there: it was preempted" if num_written else ""
    impl.diary.note(
        f"{num_blocks} blocks of {size}, {pool.num_free} free; {others} run on {max_num_seqs} seats; watermark "
        f"{scheduler.watermark_blocks}; a prompt of {num_prompt}, up to {num_more} more{written}"
    )
    impl.diary.note(f"cached={cached}, of which {free} are free; reserve_full={reserve}, tokens_left={left}")
    before, lent = (state_of(pool), list(scheduler.running)), list(cached)
    expect("admission(group, cached)", scheduler.admission(group, lent), due, why)
    expect("self.tokens_left", scheduler.tokens_left, left, "It is only asked, and kept up to date for you.")
    if ((state_of(pool), list(scheduler.running)), lent) != (before, cached):
        raise Wrong("admission is a question: it starts nobody, takes no block, and changes no list.")


NOW, LATER, NEVER = Admission


def test_9_5_what_can_never_fit(impl):
    why = "It could grow to more blocks than the whole pool has (group.max_blocks): so it would be preempted for ever."
    for reserve in (True, False):
        ask(impl, NEVER, why, num_prompt=20, num_more=6, reserve=reserve, left=4)
        ask(impl, NOW, "It just fits.", num_prompt=20, num_more=5, reserve=reserve)


def test_9_5_the_whole_prompt(impl):
    why = "With reserve_full the whole prompt of 6 needs room, 3 blocks of 2, even if this step computes only 2 of it."
    ask(impl, NOW, why, used=9, left=2)
    ask(impl, LATER, why, used=10, left=2)


def test_9_5_who_was_preempted_comes_back(impl):
    why = "It was preempted after 4 tokens: they are computed again, too, so 10 tokens need 5 blocks of 2."
    ask(impl, NOW, why, used=7, num_more=9, num_written=4)
    ask(impl, LATER, why, used=8, num_more=9, num_written=4)


def test_9_5_the_first_chunk(impl):
    why = "Without reserve_full it is the first chunk that needs room: at most tokens_left, in whole blocks."
    ask(impl, NOW, why, used=11, reserve=False, left=2)
    ask(impl, LATER, why, used=11, reserve=False, left=3)
    ask(impl, NOW, why, used=10, reserve=False, left=3)
    ask(impl, NOW, "The prompt is shorter than what this step may compute.", used=9, reserve=False, left=64)


def test_9_5_the_watermark(impl):
    why = "3 of the 12 blocks are the watermark: while somebody runs, they have to stay free, for first chunks too."
    for reserve, used in ((True, 6), (False, 8)):
        ask(impl, NOW, why, used=used, others=1, watermark=0.25, reserve=reserve, left=2)
        ask(impl, LATER, why, used=used + 1, others=1, watermark=0.25, reserve=reserve, left=2)
    why = "Nobody runs, so nobody needs room to grow; with a watermark for it the largest would wait for ever."
    ask(impl, NOW, why, used=0, num_prompt=22, watermark=0.5)


def test_9_5_cached_blocks(impl):
    why = "Block 0 holds the first 2 of 6 tokens, and is in use: 4 tokens are to be computed, and need 2 blocks."
    ask(impl, NOW, why, used=10, cached=[0])
    ask(impl, LATER, why, used=11, cached=[0])
    why = "Block 11 holds the first 2 of 6 tokens, and is free: it leaves the free queue, and counts as needed."
    ask(impl, NOW, why, used=9, cached=[11])
    ask(impl, LATER, why, used=10, cached=[11])
    why = "4 of 6 tokens are cached, in use: 2 are left, fewer than tokens_left."
    ask(impl, NOW, why, used=11, cached=[0, 1], reserve=False, left=5)


def test_9_5_seats(impl):
    why = "A sequence needs a seat: see self._seats_left()."
    ask(impl, LATER, why, others=4)
    ask(impl, NOW, why, others=3)


@remembered
def test_9_5_with_everything(impl):
    """All together, beside minipage's own."""
    rng = Random(0)
    for _ in range(300):
        size, num_blocks = rng.choice([1, 2, 3, 4]), rng.randint(4, 14)
        case = {
            "num_blocks": num_blocks, "size": size, "used": rng.randint(0, num_blocks),
            "num_prompt": rng.randint(1, 20), "others": rng.choice([0, 0, 1, 2, 3]),
            "watermark": rng.choice([0, 0, 0.1, 0.3]), "reserve": rng.random() < 0.4, "left": rng.randint(1, 12),
            "max_num_seqs": rng.randint(1, 4), "num_more": rng.randint(1, 6),
        }  # fmt: skip
        case["num_written"] = rng.choice([0, rng.randrange(case["num_more"])])
        case["others"] = min(case["others"], case["max_num_seqs"])
        most = (case["num_prompt"] - 1) // size
        case["cached"] = rng.sample(range(num_blocks), min(most, num_blocks, rng.choice([0, 0, 1, 2])))
        ask(impl, due_for(case), "NEVER, NOW or LATER, by the rules.", **case)


def due_for(case):
    pool = BlockPool(case["num_blocks"], case["size"])
    cls = Scheduler if case["reserve"] else FirstChunkScheduler
    scheduler = cls(pool, case["max_num_seqs"], case["left"], watermark=case["watermark"])
    pool.allocate_many(case["used"])
    scheduler.running = [group_of(pool, 1) for _ in range(case["others"])]
    group = group_of(pool, case["num_prompt"], case["num_more"], case["num_written"])
    return scheduler.admission(group, case["cached"])


def served(scheduler, seed, note=lambda line: None):
    """Serve some requests to the end; what each step computed, and how often somebody was preempted."""
    rng, plans = Random(seed), []
    sizes = [(rng.randint(1, 24), rng.randint(1, 8)) for _ in range(8)]
    groups = [add(scheduler, name, *size) for name, size in zip("ABCDEFGH", sizes)]
    while scheduler.has_unfinished:
        plans.append(step(scheduler))
        note(f"step {len(plans)}: {plans[-1]}")
        if not plans[-1] or len(plans) > 500:
            raise Wrong("Requests are unfinished, but a step computes nothing: everybody waits for ever.")
    return plans, sum(group.num_preemptions for group in groups)


def test_9_5_without_waiting_for_ever(impl):
    if not passes(impl, test_9_5_with_everything):
        return
    for seed, reserve, watermark in product(range(8), (True, False), (0.0, 0.3)):
        impl.diary.begin()
        impl.diary.note(f"12 blocks of 4, chunks of 8, watermark {watermark}, reserve_full={reserve}")
        theirs = impl.Admitting(BlockPool(12, 4), 4, 8, watermark=watermark)
        theirs.reserve_full = reserve
        ours = (Scheduler if reserve else FirstChunkScheduler)(BlockPool(12, 4), 4, 8, watermark=watermark)
        due, got = served(ours, seed), served(theirs, seed, impl.diary.note)
        expect("(plans, preemptions)", got, due, "In a whole run it should plan what minipage's scheduler plans.")
