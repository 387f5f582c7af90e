"""A Scheduler under random traffic, with no model: fake_engine.py carries out its plans on dictionaries.

Groups of samples and of beams arrive, run, branch, finish, and are aborted (waiting, running, swapped out, or in the
middle of a step). Now and then a step fails half way, or the prefix cache is emptied. Whatever a sequence would read is
compared with its own prefix, so one that loses a token, skips a position, reads a freed block, comes back from the swap
pool with somebody else's data, or trusts a step that failed is found out, as a real model would have found it out by
talking nonsense.

After every plan and every step the machine also holds the scheduler to its word (plan_checks.py): budget and seats, the
order of the policy, the last gives way, groups stay together, everybody finishes once arrivals stop, and in the end
every block is free. Only public methods are used, so the machine runs on any scheduler: `machine(Scheduler=Mine)`.
"""

import sys
from itertools import product
from typing import ClassVar, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minipage.errors import InvalidRequestError
from minipage.memory import BlockTable, PrefixCache, blocks_needed
from minipage.promises.fake_engine import (
    WatchedPool,
    assert_reads_its_own,
    move_data,
    take_beams,
    take_samples,
    write,
)
from minipage.promises.plan_checks import PlanChecks, blocks_of
from minipage.promises.scheduling_examples import shown
from minipage.scheduling import POLICIES, GroupStatus, Scheduler, Sequence, SequenceGroup

PREEMPTION = ["recompute", "swap", "auto"]


class Request(NamedTuple):
    kind: str  # how many sequences
    num_prompt: int
    num_generated: int  # at most
    which: int  # of the prompts, which all begin with the same 4 tokens
    priority: int
    salt: str


KINDS = ["1 sample", "2 samples", "3 samples", "2 beams", "4 beams"]
# One list of all there are, so that a request costs one random choice: thousands of histories are to be made.
REQUESTS = [Request(*fields) for fields in product(KINDS, range(1, 7), range(1, 13), [0, 1], [0, 1], ["", "salt"])]
requests = st.integers(0, len(REQUESTS) - 1).map(lambda number: REQUESTS[number])


def machine(Scheduler=Scheduler, Group=SequenceGroup, Table=BlockTable, Cache=PrefixCache, **given):
    """A SchedulerMachine with these parts, and with these settings instead of random ones."""
    named = type(Group.__name__, (Group,), {"__repr__": lambda group: group.group_id})  # as messages should have it
    parts = {"Scheduler": Scheduler, "Group": named, "Table": Table, "Cache": Cache, "given": given}
    return type("SchedulerMachine", (SchedulerMachine,), parts)


class SchedulerMachine(PlanChecks, RuleBasedStateMachine):
    Scheduler, Group, Table, Cache = Scheduler, SequenceGroup, BlockTable, PrefixCache
    given: ClassVar = {}  # settings that are not drawn
    num_histories = 0  # that ended well

    @initialize(
        num_blocks=st.sampled_from([10, 12, 8, 16, 6, 20, 4]),
        block_size=st.sampled_from([2, 3, 4, 1]),
        swap=st.sampled_from([12, 24, 6, 1]),
        max_num_seqs=st.sampled_from([16, 12, 8, 4, 1]),
        max_num_batched_tokens=st.sampled_from([32, 16, 8, 5, 1]),
        preemption=st.sampled_from(PREEMPTION),
        caching=st.booleans(),
        policy=st.sampled_from(sorted(POLICIES)),
        watermark=st.sampled_from([0.0, 0.0, 0.1, 0.3]),
        vocab_size=st.sampled_from([1000, 2, 1]),
        first=st.lists(requests, min_size=2, max_size=6),
    )
    def start(self, first, **drawn):
        given = drawn | self.given
        self.note(", ".join(f"{name}={value}" for name, value in given.items()))
        pools = WatchedPool(given["num_blocks"], given["block_size"]), WatchedPool(given["swap"], given["block_size"])
        self.pool, self.swap_pool = pools
        self.max_num_seqs, self.max_num_batched_tokens = given["max_num_seqs"], given["max_num_batched_tokens"]
        self.preemption, self.by_priority = given["preemption"], given["policy"] == "priority"
        self.watermark_blocks = int(given["watermark"] * given["num_blocks"])
        self.vocab_size = given["vocab_size"]
        self.cache = self.Cache(self.pool) if given["caching"] else None
        self.scheduler = self.Scheduler(
            self.pool, self.max_num_seqs, self.max_num_batched_tokens, policy=POLICIES[given["policy"]],
            prefix_cache=self.cache, swap_pool=self.swap_pool, preemption=self.preemption, watermark=given["watermark"],
        )  # fmt: skip
        self.groups = []  # those not finished, in order of arrival
        self.texts = {}  # sequence -> the salt and the tokens that it must have
        self.takes = {}  # group -> how its sequences get their tokens
        self.common = {}  # group -> how many tokens all its sequences had in common when it (re)started
        self.num_arrived = 0
        self.arrive(first)

    def note(self, line):
        """Graders write down what happens (run_machine)."""

    def order(self, group):
        number = int(group.group_id[1:])
        return (group.priority, number) if self.by_priority else number

    # ---- the rules ---------------------------------------------------------------------------------------------------

    @rule(requests=st.lists(requests, min_size=2, max_size=6))
    def arrive(self, requests):
        for request in requests:
            self.add(request)

    def add(self, request):
        name, self.num_arrived = f"G{self.num_arrived}", self.num_arrived + 1
        kind, num_prompt, num_generated, which, priority, salt = request
        num_seqs, is_beams = int(kind[0]), "beams" in kind
        prompt = [i if i < 4 else 100 * which + i for i in range(num_prompt)]
        names = [name] if is_beams or num_seqs == 1 else [f"{name}.{i}" for i in range(num_seqs)]
        sequences = [Sequence(each, prompt, self.Table(self.pool)) for each in names]
        group = self.Group(name, sequences, num_prompt + num_generated, num_seqs, priority, salt)
        longest = blocks_needed(num_prompt + num_generated - 1, self.pool.block_size)
        shared = num_prompt // self.pool.block_size
        most = shared + num_seqs * (longest - shared)
        seats = min(self.max_num_seqs, self.max_num_batched_tokens)
        can_run = most <= self.pool.num_blocks and num_seqs <= seats
        try:
            self.scheduler.add(group)
        except InvalidRequestError:
            assert not can_run, f"{group} fits into the pool and must not be refused"
            if num_generated > 1:
                self.add(request._replace(num_generated=num_generated // 2))  # so ask for less
        else:
            assert can_run, (
                f"{group} may need {most} of {self.pool.num_blocks} blocks and {num_seqs} of {seats} seats: it can "
                "never fit, refuse it"
            )
            self.groups.append(group)
            self.note(f"{name} arrives: {kind}, {num_prompt} prompt tokens, {num_generated} more, priority {priority}")
            self.texts.update((seq, (salt, *prompt)) for seq in sequences)
            self.takes[group] = take_beams if is_beams else take_samples
            self.common[group] = num_prompt

    @precondition(lambda self: self.groups)
    @rule(count=st.integers(1, 8))
    def steps(self, count):
        for _ in range(count):
            if self.groups:
                self.step()
                self.check()

    @precondition(lambda self: self.groups)
    @rule(which=st.integers(0, 9))
    def step_in_which_one_is_aborted(self, which):
        self.step(aborted=which)

    def step(self, aborted=None):
        """One turn of the engine's loop."""
        plan = self.schedule()
        at_their_end = self.compute(plan)
        if aborted is not None:
            self.abort(aborted)
        self.scheduler.update(plan)
        self.give_tokens(at_their_end)

    @precondition(lambda self: self.groups)
    @rule(what=st.sampled_from(["copying", "computing", "sampling"]), how_many=st.integers(0, 3))
    def step_that_fails(self, what, how_many):
        """Something breaks half way, and nobody knows how far it came."""
        plan = self.schedule()
        self.note(f"... and breaks while {what}: everybody is computed again (recompute_all)")
        if what == "copying":
            self.pool.lose_old_contents()
            self.swap_pool.lose_old_contents()
        elif what == "computing":
            move_data(plan, self.pool, self.swap_pool)
            for chunk in plan.chunks:
                write(chunk, self.texts[chunk.seq], contents="half written")
        else:
            at_their_end = self.compute(plan)
            self.scheduler.update(plan)
            self.give_tokens(at_their_end[:how_many])
        self.scheduler.recompute_all()
        for group in self.groups:
            assert group.status is GroupStatus.WAITING, f"the step failed, so {group} has to be computed again"
            self.note_restart(group)

    @precondition(lambda self: self.groups)
    @rule(index=st.integers(0, 9), swapped=st.booleans())
    def abort(self, index, swapped=False):
        groups = (self.scheduler.swapped if swapped else None) or self.groups
        if groups:
            group = groups[index % len(groups)]
            self.note(f"{group} is aborted")
            self.groups.remove(group)
            self.scheduler.remove(group)
            assert group.status is GroupStatus.FINISHED, f"{group} was aborted, so it is finished"
            assert not blocks_of(group), f"{group} was aborted but keeps blocks {sorted(blocks_of(group))}: a leak"

    @precondition(lambda self: self.cache)
    @rule()
    def reset_the_prefix_cache(self):
        self.cache.reset()

    def arrivals_stop(self):
        """Then the first in the order always gets on, and only one that comes before it can displace it."""
        most = sum((group.max_num_seqs + 2) * group.max_num_tokens for group in self.groups) * len(self.groups)
        for _ in range(most):
            if self.groups:
                self.steps(1)
        assert not self.groups, f"nobody arrives any more, but after {most} steps these are not done: livelock"
        assert not self.scheduler.has_unfinished, "every group is done, but has_unfinished says otherwise"
        for pool in (self.pool, self.swap_pool):
            assert pool.num_free == pool.num_blocks, "every group is done, but blocks are still in use: a leak"

    # ---- the fake engine ---------------------------------------------------------------------------------------------

    def schedule(self):
        before = self.state()
        plan = self.scheduler.schedule()
        self.note(f"step: {shown(plan)}")
        for group in plan.preempted:
            if group.status is GroupStatus.WAITING:
                self.note_restart(group)
        self.check_queues()
        self.check_plan(plan, before)
        return plan

    def note_restart(self, group):
        texts = [self.texts[seq][1:] for seq in group.sequences]
        self.common[group] = next((i for i, tokens in enumerate(zip(*texts)) if len(set(tokens)) > 1), len(texts[0]))

    def compute(self, plan):
        """Returns the groups that get their next tokens."""
        move_data(plan, self.pool, self.swap_pool)
        holders = self.holders(self.scheduler.running)
        for chunk in plan.chunks:
            table, size = chunk.seq.block_table, self.pool.block_size
            for block in table.blocks[chunk.start // size : (chunk.start + chunk.num_tokens - 1) // size + 1]:
                assert holders[block] == 1, (
                    f"{chunk.seq} writes into block {block}, which {holders[block]} block-table entries name: only a "
                    "block of one's own may be written"
                )
                assert not (self.cache and block in self.cache), f"block {block} is full and known: nobody may write it"
            write(chunk, self.texts[chunk.seq])
        for chunk in plan.chunks:
            assert_reads_its_own(chunk.seq, self.texts[chunk.seq], stop=chunk.start + chunk.num_tokens)
        return list(dict.fromkeys(chunk.group for chunk in plan.chunks if chunk.receivers))

    def give_tokens(self, groups):
        for group in groups:
            if group in self.groups:  # not aborted
                for seq in self.takes[group](group, self.texts, self.vocab_size):
                    self.scheduler.finish(group, seq)
                    assert not len(seq.block_table), f"{seq} is complete but keeps {list(seq.block_table)}: a leak"
                if not group.sequences:
                    self.groups.remove(group)

    # ---- after every rule --------------------------------------------------------------------------------------------

    @invariant()
    def check(self):
        self.check_queues()
        for group in [*self.scheduler.running, *self.scheduler.swapped]:
            for seq in group.sequences:
                assert_reads_its_own(seq, self.texts[seq], stop=seq.num_computed_tokens)

    def check_queues(self):
        s = self.scheduler
        queues = {GroupStatus.RUNNING: s.running, GroupStatus.WAITING: s.waiting, GroupStatus.SWAPPED: s.swapped}
        everybody = [group for queue in queues.values() for group in queue]
        assert len(everybody) == len(set(everybody)), f"somebody is queued twice: {everybody}"
        assert set(everybody) == set(self.groups), (
            f"{[group for group in everybody if group not in self.groups]} are done but still queued, "
            f"{[group for group in self.groups if group not in everybody]} are not done but in no queue: lost"
        )
        assert s.has_unfinished == bool(self.groups), "has_unfinished does not tell the truth"
        for status, queue in queues.items():
            assert queue == sorted(queue, key=self.order), f"the policy asks for another order than {queue}"
            for group in queue:
                assert group.status is status, f"{group} is in the queue of those who are {status.value}"
                self.check_group(group)
        for pool, groups in ((self.pool, s.running), (self.swap_pool, s.swapped)):
            num_owned = len(self.holders(groups))
            assert num_owned == pool.num_used, f"{pool.num_used} blocks are in use, {num_owned} have an owner: a leak"
        s.check_integrity()

    def check_group(self, group):
        for seq in group.sequences:
            tokens = list(self.texts[seq][1:])
            assert seq.token_ids == tokens, f"{seq} lost tokens: it has {seq.token_ids}, and should have {tokens}"
            assert group.status is not GroupStatus.WAITING or not len(seq.block_table), (
                f"{seq} is waiting but holds blocks {list(seq.block_table)}"
            )
            assert seq.block_table.pool is (self.swap_pool if group.status is GroupStatus.SWAPPED else self.pool), (
                f"{group}: the blocks of {seq} are not where those of its group are"
            )

    def teardown(self):
        if not sys.exc_info()[0] and hasattr(self, "pool"):  # otherwise the machine has found something already
            self.arrivals_stop()
            type(self).num_histories += 1
