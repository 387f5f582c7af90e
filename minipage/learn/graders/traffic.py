"""Two schedulers under the same traffic, minipage's own and a learner's, which must plan the same steps.

Everything about a plan is fixed by what is promised (who comes first, who is let in, who gives way, how many tokens),
so the plans are compared whole, except for which physical block is whose. fake_engine.py carries out both of them on
dictionaries, so a block that is moved to a wrong place, or shared with the wrong text, is read and found.
"""

from numbers import Integral
from typing import NamedTuple

from minipage.errors import IntegrityError, InvalidRequestError
from minipage.learn.graders.common import Words, expect
from minipage.learn.judge import Wrong
from minipage.memory import PrefixCache
from minipage.promises.by_the_paper import NAMES, ByThePaper
from minipage.promises.fake_engine import (
    WatchedPool,
    assert_reads_its_own,
    move_data,
    take_beams,
    take_samples,
    write,
)
from minipage.promises.scheduling_examples import add, names_of, shown, written
from minipage.scheduling import POLICIES, Admission, GroupStatus, Scheduler, SequenceGroup, StepPlan


class Request(NamedTuple):
    num_prompt: int
    num_generated: int  # at most
    n: int = 1  # samples, or beams
    beams: bool = False
    which: int = 0  # of the prompts, which all begin with the same 4 tokens
    priority: int = 0
    salt: str = ""


class Setup(NamedTuple):
    num_blocks: int = 6
    block_size: int = 2
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 6
    watermark: float = 0.0
    preemption: str = "recompute"
    num_swap_blocks: int = 0
    caching: bool = False
    policy: str = "fcfs"


def scheduler_of(cls, setup):
    pool = WatchedPool(setup.num_blocks, setup.block_size)
    swap_pool = WatchedPool(setup.num_swap_blocks, setup.block_size) if setup.num_swap_blocks else None
    cache = PrefixCache(pool) if setup.caching else None
    try:
        return cls(
            pool, setup.max_num_seqs, setup.max_num_batched_tokens, policy=POLICIES[setup.policy], prefix_cache=cache,
            swap_pool=swap_pool, preemption=setup.preemption, watermark=setup.watermark,
        )  # fmt: skip
    except TypeError as error:
        raise Wrong(
            f"{cls.__name__} cannot be made as minipage makes its scheduler: an __init__ of your own has to take the "
            "same arguments and hand them on, super().__init__(*args, **options)."
        ) from error


# ---- a learner's class, with some of its methods


RESULTS = {  # method -> what it returns
    "_make_room": (bool, "True if there is room now, False if the group itself had to give way"),
    "_swap_in": (Integral, "how much of the budget is left"),
    "schedule": (StepPlan, "the plan that it made"),
    "admission": (Admission, "Admission.NOW, LATER or NEVER"),
}


def with_methods(theirs, names, others=(), **methods):
    """A subclass of theirs: `names` are under test, and `others` are minipage's again, so a mistake is said once."""
    if not (isinstance(theirs, type) and issubclass(theirs, Scheduler)):
        raise Wrong(
            f"Your class builds on minipage's scheduler: class {getattr(theirs, '__name__', '...')}(Scheduler)."
        )
    methods |= {name: getattr(ByThePaper, name) for name in (*others, *NAMES)}
    methods |= {name: checked(theirs, name) for name in names}
    own = type("Scheduler", (Scheduler,), {name: not_yours(name) for name in names})
    return type(theirs.__name__, (theirs, own), methods)


def checked(theirs, name):
    """Their method, and a look at what comes back."""
    method = getattr(theirs, name)
    if method is getattr(Scheduler, name):
        raise Wrong(f"{theirs.__name__}.{name} is minipage's own. Write one.")

    def looked_at(self, *args, **kwargs):
        result = method(self, *args, **kwargs)
        kind, what = RESULTS.get(name, (object, ""))
        if not isinstance(result, kind) or (kind is Integral and isinstance(result, bool)):
            raise Wrong(f"{name} has to return {what}.", Words("int" if kind is Integral else kind.__name__), result)
        return result

    return looked_at


def not_yours(name):
    def refuse(self, *args, **kwargs):
        raise Wrong(f"super().{name}() is minipage's own answer to this exercise. Write it yourself.")

    return refuse


# ---- both beside each other


class Side:
    """One of the two: a scheduler, its pools, and the texts that its sequences must have."""

    def __init__(self, cls, setup):
        self.scheduler, self.setup = scheduler_of(cls, setup), setup
        self.no_swap = WatchedPool(1, setup.block_size)
        self.texts, self.takes = {}, {}

    @property
    def groups(self):
        s = self.scheduler
        return [*s.running, *s.waiting, *s.swapped]

    def arrive(self, name, request):
        prompt = [i if i < 4 else 100 * request.which + i for i in range(request.num_prompt)]
        n = 1 if request.beams else request.n
        options = {"prompt": prompt, "priority": request.priority, "cache_salt": request.salt, "width": request.n}
        group = add(self.scheduler, name, num_generated=request.num_generated, n=n, **options)
        self.texts.update((seq, (request.salt, *prompt)) for seq in group.sequences)
        self.takes[group] = take_beams if request.beams else take_samples

    def tables(self):
        """Of each group, the blocks of each of its sequences."""
        return {group: [list(seq.block_table) for seq in group.sequences] for group in self.groups}

    def carry_out(self, plan):
        """The rest of the step, on dictionaries."""
        s = self.scheduler
        move_data(plan, s.block_pool, s.swap_pool or self.no_swap)
        for chunk in plan.chunks:
            write(chunk, self.texts[chunk.seq])
        for chunk in plan.chunks:
            assert_reads_its_own(chunk.seq, self.texts[chunk.seq], stop=chunk.start + chunk.num_tokens)
        at_their_end = list(dict.fromkeys(chunk.group for chunk in plan.chunks if chunk.receivers))
        s.update(plan)
        for group in at_their_end:
            for seq in self.takes[group](group, self.texts, 50):
                s.finish(group, seq)


def run(impl, cls, setup, arrivals, most_steps=80, squeezed=0):
    """Run both beside each other until all is done. `squeezed`: how many seats there are while somebody is swapped out
    and others run, as if an operator had lowered max_num_seqs: otherwise those who had seats find them again."""
    impl.diary.begin()
    changed = {name: value for name, value in setup._asdict().items() if value}
    impl.diary.note(", ".join(f"{name}={value}" for name, value in changed.items()))
    theirs, ours = Side(cls, setup), Side(ByThePaper, setup)
    arrivals, names = [*arrivals], iter("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for number in range(1, most_steps):
        for request in arrivals.pop(0) if arrivals else ():
            arrive(impl, next(names), request, theirs, ours)
        if not ours.groups and not arrivals:
            return
        if squeezed:
            squeeze(impl, squeezed, theirs, ours)
        due = ours.scheduler.schedule()
        running, tables = list(theirs.scheduler.running), theirs.tables()
        plan = theirs.scheduler.schedule()
        impl.diary.note(f"step {number}: {shown(plan)}")
        check_lists(theirs, running, tables, plan)
        compare(setup, names_of(running), plan, due, theirs.scheduler, ours.scheduler)
        ours.carry_out(due)
        theirs.carry_out(plan)
        compare_texts(theirs, ours)


def squeeze(impl, squeezed, theirs, ours):
    few = bool(ours.scheduler.swapped and ours.scheduler.running)
    for side in (theirs, ours):
        side.scheduler.max_num_seqs = squeezed if few else side.setup.max_num_seqs
    if few:
        impl.diary.note(f"max_num_seqs={squeezed} in this step")


def arrive(impl, name, request, theirs, ours):
    """It comes to both, with less to say if it could never fit."""
    while True:
        try:
            ours.arrive(name, request)
            break
        except InvalidRequestError:
            if request.num_generated == request.n == 1:
                return
            request = request._replace(num_generated=max(1, request.num_generated // 2), n=max(1, request.n - 1))
    theirs.arrive(name, request)
    line = f"{name} arrives: {request.num_prompt} prompt tokens, {request.num_generated} more"
    line += f", {request.n} {'beams' if request.beams else 'samples'}" if request.n > 1 else ""
    line += f", priority {request.priority}" if theirs.setup.policy == "priority" else ""
    impl.diary.note(line + (f", salt {request.salt!r}" if theirs.setup.caching and request.salt else ""))


# ---- what may be wrong


def check_lists(side, running, tables, plan):
    """The plan and the lists tell one story."""
    s = side.scheduler
    gone = [group for group in running if group not in s.running]
    for group in plan.preempted:
        if not isinstance(group, SequenceGroup):
            raise Wrong("plan.preempted is a list of groups.", names_of(gone), plan.preempted, "plan.preempted")
    for group in gone:
        name = group.group_id
        if group not in s.waiting and group not in s.swapped:
            raise Wrong(f"{name} was taken out of self.running and put nowhere: self._enqueue(group, GroupStatus...).")
        if group not in plan.preempted:
            why = f"{name} was preempted, and the plan does not say so: plan.preempted.append(group)."
            raise Wrong(why, names_of(gone), names_of(plan.preempted), "plan.preempted")
    moved = {
        "swap_out": [group for group in gone if group in s.swapped],
        "swap_in": [group for group in s.running if group in tables and group.leader.block_table.pool is s.block_pool
                    and group not in running and any(tables[group])],
    }  # fmt: skip
    copied_from = {destination: source for source, destination in plan.copies}  # on write, after they came back
    now = {
        group: [
            [copied_from.get(block, block) for block in table] if group in moved["swap_in"] else table for table in of
        ]
        for group, of in side.tables().items()
    }
    for what, groups in moved.items():
        check_moves(what, groups, tables, now, getattr(plan, what))
    for group in side.groups:
        queue = {GroupStatus.RUNNING: s.running, GroupStatus.WAITING: s.waiting, GroupStatus.SWAPPED: s.swapped}.get(
            group.status, []
        )
        if sum(other is group for other in side.groups) != 1 or group not in queue:
            raise Wrong(f"{group.group_id} is in another list than its status says ({group.status}), or in two.")


def check_moves(what, groups, before, after, moves):
    """`moves` has to copy each block of these groups, once, from where it was to where it is."""
    due = {
        pair
        for group in groups
        for old, new in zip(before[group], after[group])
        for pair in zip(old, new)
    }  # fmt: skip
    if not all(isinstance(pair, tuple) and len(pair) == 2 for pair in moves):
        raise Wrong(f"plan.{what} is a list of what group.move_to(pool) returns.", sorted(due), moves, f"plan.{what}")
    got = sorted(map(tuple, moves))
    if got == sorted(due):
        return
    where = ("(block, block of the swap pool)", "swap_pool") if what == "swap_out" else ("(swap, block)", "block_pool")
    why = f"plan.{what} orders the copies, as pairs {where[0]}: plan.{what}.extend(group.move_to(self.{where[1]}))."
    if not moves:
        why = f"{', '.join(names_of(groups))} moved to another pool, and nobody copies K and V. {why}"
    raise Wrong(why, sorted(due), got, f"plan.{what}")


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
    expect("who runs", names_of(theirs.running), names_of(ours.running), admitted_why(plan, theirs, ours))
    why = "Who does not run waits, in the order of the policy."
    expect("who waits", names_of(theirs.waiting), names_of(ours.waiting), why)
    why = (
        "Each chunk is (sequence, first token, number of tokens). Those who run are computed first, in order, then "
        "those who come in; each gets what it wants, or what is left of the budget."
    )
    if [name for name, _, _ in chunks[: len(before)]] != [name for name, _, _ in expected[: len(before)]]:
        why += " With newcomers first, a stream of new prompts would starve whoever runs (as nano-vllm does)."
    if setup.caching and any(a[0] == b[0] and a[1] < b[1] for a, b in zip(chunks, expected)):
        why += (
            " What the prefix cache knows of a text (self._find_prefix) need not be computed: its first token is later."
        )
    expect("the plan", chunks, expected, why)
    compare_pools(theirs, ours)


def compare_pools(theirs, ours):
    why = (
        "Whoever is preempted gives its blocks back, and every planned token has a slot: no more, no fewer are in use."
    )
    expect("free blocks", theirs.block_pool.num_free, ours.block_pool.num_free, why)
    if theirs.swap_pool:
        expect("free swap blocks", theirs.swap_pool.num_free, ours.swap_pool.num_free, why)
    try:
        theirs.check_integrity()
    except IntegrityError as error:
        raise Wrong(f"The block tables and the pool do not agree after this step: {error}") from error
    if theirs.prefix_cache:
        hits = [(s.num_queried_tokens, s.num_hit_tokens) for s in (theirs, ours)]
        why = (
            "A newcomer begins with the blocks that are known to hold its prefix: hand on what self._find_prefix found."
        )
        expect("(tokens looked up, tokens found) in the prefix cache", *hits, why)
        hashes = [
            [len(seq.block_table.block_hashes) for group in s.running for seq in group.sequences]
            for s in (theirs, ours)
        ]
        why = (
            "A newcomer's table takes the root hash and the hash of every block that was found, or those blocks are "
            "published again: hand all on that self._find_prefix found."
        )
        expect("the number of hashes of each sequence that runs", *hashes, why)


def swapped_why(plan, due, otherwise):
    if len(plan.swap_in) == len(due.swap_in):
        return otherwise
    return (
        "The first who was swapped out comes back as soon as all its blocks and those for its next tokens are free, "
        "and there are seats; not earlier, not later, and nobody behind it comes first. Then the next one, in the same "
        "step, if it finds room, too."
    )


def admitted_why(plan, theirs, ours):
    if plan.preempted:
        return "In a step that had to preempt somebody, nobody comes in: the blocks would be missing again at once."
    extra = set(names_of(theirs.running)) - set(names_of(ours.running))
    if ours.swapped and extra:
        return "Nobody is admitted while anybody is swapped out: those have been served before, and want their blocks."
    if set(names_of(theirs.running)) == set(names_of(ours.running)):
        return "self.running is in the order of the policy, first to be served first, and stays so: self._enqueue."
    if extra:
        return (
            "Somebody was let in too early: there must be budget, a seat for each of its sequences, blocks for all the "
            "tokens it has now, and nobody before it who has to wait."
        )
    return "Somebody has to wait although there are tokens, seats and blocks for it."


def compare_texts(theirs, ours):
    def texts(side):
        return {seq.seq_id: seq.token_ids for group in side.groups for seq in group.sequences}

    def preempted(side):
        return {group.group_id: group.num_preemptions for group in side.groups}

    why = (
        "A text that was preempted keeps every token, the generated ones too (they may have been read already); only K "
        "and V are computed again. Engines have lost them (nano-vllm #103)."
    )
    expect("the tokens of each text", texts(theirs), texts(ours), why)
    expect("num_preemptions", preempted(theirs), preempted(ours), "preempt() counts, for the statistics.")
