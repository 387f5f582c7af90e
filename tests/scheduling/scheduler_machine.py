"""A Scheduler under random traffic, with no model: a fake engine loop, and a dictionary that stands for the KV cache.

Requests arrive, run, are aborted (waiting, running, or in the middle of a step), and now and then a step fails half way
and is undone. Tokens are numbered, no number is used twice, and the "K and V" of a token are its prefix: the tuple of
all tokens up to and including its own. Computing a token writes its prefix to its slot, after checking that the slots
of all earlier tokens hold theirs. So a sequence that loses a token, skips a position, reads a freed block or trusts a
step that failed is found out, as a real model would have found it out by talking nonsense.

After every schedule and every step the machine also holds the scheduler to its word: budget and seats, first come first
served, the latest is preempted and nobody else, waiting sequences hold no blocks, the oldest always gets on, everybody
finishes once arrivals stop, and in the end every block is free. Only public methods are used, so the machine runs on
any scheduler: `machine(MyScheduler)`.
"""

import sys

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minipage.errors import InvalidRequestError
from minipage.memory import BlockPool, BlockTable, blocks_needed
from minipage.scheduling import Scheduler, Sequence, Status


def machine(scheduler_class=Scheduler):
    """A SchedulerMachine that drives this class."""
    return type("SchedulerMachine", (SchedulerMachine,), {"Scheduler": scheduler_class})


class SchedulerMachine(RuleBasedStateMachine):
    Scheduler = Scheduler

    @initialize(
        num_blocks=st.integers(1, 16),
        block_size=st.integers(1, 4),
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.integers(1, 16),
    )
    def start(self, num_blocks, block_size, max_num_seqs, max_num_batched_tokens):
        self.pool = BlockPool(num_blocks, block_size)
        self.scheduler = self.Scheduler(self.pool, max_num_seqs, max_num_batched_tokens)
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.unfinished = []  # sequences in order of arrival
        self.tokens = {}  # sequence -> the tokens that it must have
        self.slots = {}  # slot -> the prefix that was written there
        self.num_arrived = self.num_tokens = 0

    def new_tokens(self, count):
        self.num_tokens += count
        return list(range(self.num_tokens - count, self.num_tokens))

    # ---- the rules ---------------------------------------------------------------------------------------------------

    @rule(requests=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 12)), min_size=1, max_size=4))
    def arrive(self, requests):
        for num_prompt, num_generated in requests:
            self.add(num_prompt, num_generated)

    def add(self, num_prompt, num_generated):
        prompt = self.new_tokens(num_prompt)
        seq = Sequence(f"S{self.num_arrived}", prompt, num_prompt + num_generated, BlockTable(self.pool))
        self.num_arrived += 1
        wanted = blocks_needed(num_prompt + num_generated - 1, self.pool.block_size)
        try:
            self.scheduler.add(seq)
        except InvalidRequestError:
            assert wanted > self.pool.num_blocks, f"{seq} fits into the pool and must not be refused"
        else:
            assert wanted <= self.pool.num_blocks, f"{seq} may need {wanted} blocks: it can never fit, refuse it"
            self.unfinished.append(seq)
            self.tokens[seq] = prompt

    @rule(count=st.integers(1, 8))
    def steps(self, count):
        for _ in range(count):
            self.step()
            self.check()

    @precondition(lambda self: self.unfinished)
    @rule(what=st.sampled_from(["one stops", "one is aborted", "it fails"]), which=st.integers(0, 9))
    def step_in_which(self, what, which):
        match what:
            case "one stops":
                self.step(stopping=which)
            case "one is aborted":
                self.step(aborted=which)
            case "it fails":
                self.step_that_fails(num_sampled=which)

    def step(self, stopping=None, aborted=None):
        """One turn of the engine's loop."""
        plan = self.schedule()
        for chunk in plan.chunks:
            self.compute(chunk)
        sampled = [chunk.seq for chunk in plan.chunks if chunk.reaches_end]
        if aborted is not None:
            self.abort(aborted)
        for index, seq in enumerate(sampled):
            if seq.status is Status.RUNNING:
                self.append_token(seq)
                if index == stopping or len(seq.token_ids) == seq.max_num_tokens:
                    seq.status = Status.FINISHED
                    self.unfinished.remove(seq)
        self.scheduler.update(plan)

    def step_that_fails(self, num_sampled):
        """Half of it is written and some sequences have got their token already when something breaks."""
        plan = self.schedule()
        for chunk in plan.chunks:
            for slot in chunk.seq.block_table.slot_mapping(chunk.start, chunk.start + chunk.num_tokens):
                self.slots[slot] = "half written"
        for seq in [chunk.seq for chunk in plan.chunks if chunk.reaches_end][:num_sampled]:
            if len(seq.token_ids) < seq.max_num_tokens - 1:
                self.append_token(seq)
        self.scheduler.undo(plan)

    @precondition(lambda self: self.unfinished)
    @rule(index=st.integers(0, 9))
    def abort(self, index):
        if self.unfinished:
            seq = self.unfinished.pop(index % len(self.unfinished))
            self.scheduler.remove(seq)
            assert seq.status is Status.FINISHED, f"{seq} was aborted, so it is finished"
            assert len(seq.block_table) == 0, f"{seq} was aborted but keeps blocks {list(seq.block_table)}: a leak"

    def arrivals_stop(self):
        """Then every step computes at least one token of the oldest, so everybody finishes, within so many steps:"""
        most = sum(seq.max_num_tokens for seq in self.unfinished)
        for _ in range(most):
            if self.unfinished:
                self.steps(1)
        assert not self.unfinished, f"nobody arrives any more, but after {most} steps these are not done: livelock"
        assert not self.scheduler.has_unfinished, "every sequence is done, but has_unfinished says otherwise"
        assert self.pool.num_free == self.pool.num_blocks, "every sequence is done, but blocks are still in use: a leak"

    # ---- the fake engine ---------------------------------------------------------------------------------------------

    def schedule(self):
        running = list(self.scheduler.running)
        computed = {seq: seq.num_computed_tokens for seq in running}
        plan = self.scheduler.schedule()
        for seq in plan.preempted:
            computed.pop(seq, None)  # all of it will be recomputed
        self.check_preemptions(plan)
        self.check_queues()
        self.check_limits(plan)
        self.check_chunks(plan, computed)
        self.check_admissions(plan, running)
        for source, destination in plan.copies:
            for offset in range(self.pool.block_size):
                prefix = self.slots.get(source * self.pool.block_size + offset)
                self.slots[destination * self.pool.block_size + offset] = prefix
        return plan

    def compute(self, chunk):
        tokens = tuple(self.tokens[chunk.seq])
        self.read(chunk.seq, stop=chunk.start)
        for position in range(chunk.start, chunk.start + chunk.num_tokens):
            [slot] = chunk.seq.block_table.slot_mapping(position, position + 1)
            self.slots[slot] = tokens[: position + 1]
        self.read(chunk.seq, stop=chunk.start + chunk.num_tokens)

    def read(self, seq, stop):
        tokens = tuple(self.tokens[seq])
        for position, slot in enumerate(seq.block_table.slot_mapping(0, stop)):
            assert self.slots.get(slot) == tokens[: position + 1], (
                f"{seq} reads token {position} from slot {slot}, which should hold the K and V of the prefix "
                f"{tokens[: position + 1]}, but holds {self.slots.get(slot)}"
            )

    def append_token(self, seq):
        [token] = self.new_tokens(1)
        seq.token_ids.append(token)
        self.tokens[seq].append(token)

    # ---- what a plan promises ----------------------------------------------------------------------------------------

    def check_preemptions(self, plan):
        if plan.preempted:
            earliest = min(plan.preempted, key=self.unfinished.index)
            for seq in self.scheduler.running:
                assert self.unfinished.index(seq) < self.unfinished.index(earliest), (
                    f"{earliest} was preempted although {seq}, which came later, goes on"
                )
            wanted, free = blocks_needed(len(self.tokens[earliest]), self.pool.block_size), self.pool.num_free
            assert wanted > free, (
                f"{earliest} was preempted for nothing: all of it takes {wanted} blocks, and {free} are free now"
            )

    def check_limits(self, plan):
        total = sum(chunk.num_tokens for chunk in plan.chunks)
        assert total <= self.max_num_batched_tokens, (
            f"the step computes {total} tokens, but max_num_batched_tokens is {self.max_num_batched_tokens}"
        )
        num_running = len(self.scheduler.running)
        assert num_running <= self.max_num_seqs, (
            f"{num_running} sequences are running, but max_num_seqs is {self.max_num_seqs}"
        )

    def check_chunks(self, plan, computed):
        planned = [chunk.seq for chunk in plan.chunks]
        assert planned == [seq for seq in self.unfinished if seq in planned], (
            f"a step computes each sequence once, the oldest first; this one computes {planned}"
        )
        if self.unfinished:
            oldest = self.unfinished[0]
            assert oldest in planned, f"{oldest} is the oldest, but this step does nothing for it: it starves"
        for seq, start, num_tokens in plan.chunks:
            assert seq.status is Status.RUNNING, f"{seq} is computed, so its status should be RUNNING"
            done = computed.get(seq, 0)
            assert start == done, f"{seq}: {done} tokens had been computed, so token {done} is next, not token {start}"
            assert 1 <= num_tokens <= len(seq.token_ids) - start, (
                f"{seq}: a chunk of {num_tokens} tokens from token {start}, out of {len(seq.token_ids)}"
            )
            assert seq.num_computed_tokens == start + num_tokens, f"{seq}: every token of its chunk needs a slot"

    def check_admissions(self, plan, running):
        planned = [chunk.seq for chunk in plan.chunks]
        left_out = [seq for seq in running if seq not in planned and seq not in plan.preempted]
        admitted = [seq for seq in planned if seq not in running]
        assert not (left_out and admitted), f"{admitted} were let in while {left_out}, running, got nothing"

    # ---- after every rule --------------------------------------------------------------------------------------------

    @invariant()
    def check(self):
        self.check_queues()
        free = set(self.pool.free_queue)  # what was in a free block is gone: reading it must not come out right by luck
        self.slots = {slot: prefix for slot, prefix in self.slots.items() if slot // self.pool.block_size not in free}
        for seq in self.scheduler.running:
            self.read(seq, stop=seq.num_computed_tokens)

    def check_queues(self):
        running, waiting = list(self.scheduler.running), list(self.scheduler.waiting)
        everybody = {*running, *waiting}
        assert everybody == set(self.unfinished), (
            f"{sorted(map(repr, everybody - set(self.unfinished)))} are done but still queued, "
            f"{sorted(map(repr, set(self.unfinished) - everybody))} are not done but in no queue: lost"
        )
        assert running + waiting == self.unfinished, (
            f"first come, first served: running and then waiting ones should be {self.unfinished}, but running are "
            f"{running} and waiting are {waiting}"
        )
        assert self.scheduler.has_unfinished == bool(self.unfinished), "has_unfinished does not tell the truth"
        for seq in self.unfinished:
            assert seq.token_ids == self.tokens[seq], f"{seq} lost tokens: {seq.token_ids}, not {self.tokens[seq]}"
        for seq in waiting:
            assert not len(seq.block_table), f"{seq} is waiting but holds blocks {list(seq.block_table)}"
            assert seq.status is Status.WAITING, f"{seq} is in the waiting queue, so its status should be WAITING"
        blocks = [block for seq in running for block in seq.block_table]
        assert len(blocks) == len(set(blocks)), f"two sequences were given the same block: {sorted(blocks)}"
        assert len(blocks) == self.pool.num_used, f"{self.pool.num_used} blocks are in use, {len(blocks)} have an owner"
        self.scheduler.check_integrity()

    def teardown(self):
        if not sys.exc_info()[0] and hasattr(self, "pool"):  # otherwise the machine has found something already
            self.arrivals_stop()
