"""What every plan of a scheduler promises, each promise a method with a message that says what is wrong.

`State` is what there was before the step was planned; the checks compare it with the plan and with what there is now.
"""

from collections import Counter
from dataclasses import dataclass

from minipage.memory import blocks_needed
from minipage.scheduling import GroupStatus


@dataclass
class State:
    """A scheduler between two steps."""

    running: list  # groups, each list in the order of the policy
    waiting: list
    swapped: list
    computed: dict  # sequence -> tokens with K and V
    blocks: dict  # group -> the physical blocks it holds
    wanted: dict  # group -> blocks that it takes until all its tokens are computed
    num_free_swap: int


def blocks_of(group):
    return {block for seq in group.sequences for block in seq.block_table}


def blocks_wanted(group, block_size, holders):
    """How many free blocks a group takes until every token it has is computed."""
    length = len(group.leader.token_ids)
    most = blocks_needed(length, block_size)
    if group.is_sharing:  # the leader's, and then what the others do not share
        own = most - group.shared_len // block_size if length > group.shared_len else 0
        return most + own * (len(group.sequences) - 1) - len(group.leader.block_table)
    tables = [seq.block_table for seq in group.sequences]
    tails = [t.blocks[t.num_tokens // block_size] for t in tables if t.num_tokens // block_size < len(t)]
    writers = Counter(tails)
    copies = sum(writers[block] - (holders[block] == writers[block]) for block in writers)
    return copies + sum(most - len(table) for table in tables)


class PlanChecks:
    """Mixed into the machine, which has `scheduler`, `pool`, `swap_pool`, `groups` and the settings."""

    def state(self):
        s = self.scheduler
        groups = [*s.running, *s.waiting, *s.swapped]
        holders = {self.pool: self.holders(s.running), self.swap_pool: self.holders(s.swapped)}
        return State(
            running=list(s.running),
            waiting=list(s.waiting),
            swapped=list(s.swapped),
            computed={seq: seq.num_computed_tokens for group in groups for seq in group.sequences},
            blocks={group: blocks_of(group) for group in groups},
            wanted={g: blocks_wanted(g, self.pool.block_size, holders[g.leader.block_table.pool]) for g in groups},
            num_free_swap=self.swap_pool.num_free,
        )

    def holders(self, groups):
        """How many block-table entries name each block."""
        return Counter(block for group in groups for seq in group.sequences for block in seq.block_table)

    def check_plan(self, plan, before):
        self.check_preemptions(plan, before)
        self.check_limits(plan)
        swapped_in, admitted = self.check_newcomers(plan, before)
        self.check_swapping(plan, before)
        self.check_turns(plan, before, swapped_in + admitted)
        for group in dict.fromkeys(chunk.group for chunk in plan.chunks):
            self.check_chunks(group, plan, before, is_new=group in admitted)
        self.check_progress(plan, before)

    # ---- who gives way, and how

    def check_preemptions(self, plan, before):
        num_kept = len(before.running) - len(plan.preempted)
        last = before.running[num_kept:][::-1]
        assert plan.preempted == last, (
            f"the last in the order give way first, so {last} should have been preempted, not {plan.preempted}"
        )
        if plan.preempted:
            first = plan.preempted[-1]
            others = set().union(*(before.blocks[group] for group in before.running[:num_kept]))
            given_back, free = len(before.blocks[first] - others), self.pool.num_free
            assert free < given_back + before.wanted[first], (
                f"{first} was preempted for nothing: it gave back {given_back} blocks and would have taken "
                f"{before.wanted[first]} more, and {free} are free now"
            )

    def check_swapping(self, plan, before):
        """Who is saved in the swap pool and who is computed again; and each block is moved once."""
        room, leaving = before.num_free_swap, Counter()
        for group in plan.preempted:
            num_blocks = len(before.blocks[group])
            wanted = self.preemption == "swap" or (self.preemption == "auto" and len(group.sequences) > 1)
            is_saved = wanted and num_blocks <= room
            assert group.status is (GroupStatus.SWAPPED if is_saved else GroupStatus.WAITING), (
                f"{group} holds {num_blocks} blocks, {room} are free in the swap pool, and preemption is "
                f"{self.preemption!r}: it should be {'saved' if is_saved else 'computed again'}"
            )
            room -= num_blocks * is_saved
            leaving += Counter(before.blocks[group] if is_saved else ())
        coming = Counter(b for group in before.swapped if group in self.scheduler.running for b in before.blocks[group])
        for name, moves, blocks in (("out", plan.swap_out, leaving), ("in", plan.swap_in, coming)):
            assert Counter(source for source, _ in moves) == blocks, (
                f"swap-{name} has to move these blocks, each once, however many sequences share it: {sorted(blocks)}; "
                f"it moves {sorted(source for source, _ in moves)}"
            )
            places = [destination for _, destination in moves]
            assert len(places) == len(set(places)), f"swap-{name} moves two blocks to one place: {places}"

    # ---- who comes in

    def check_newcomers(self, plan, before):
        s, running = self.scheduler, set(self.scheduler.running)
        swapped_in = [group for group in before.swapped if group in running]
        admitted = [group for group in before.waiting if group in running]
        assert swapped_in == before.swapped[: len(swapped_in)], f"{swapped_in} came back before their turn"
        assert admitted == before.waiting[: len(admitted)], (
            f"{admitted} were let in, but the waiting queue was {before.waiting}: nobody may overtake"
        )
        newcomers = swapped_in + admitted + [group for group in plan.preempted if group in running]
        assert not (plan.preempted and newcomers), (
            f"this step had to preempt {plan.preempted}, and yet it lets {newcomers} in"
        )
        if getattr(s, "swapped_out_come_first", False):
            assert not (s.swapped and admitted), (
                f"{admitted} were let in while {s.swapped}, swapped out, wait for blocks: admission has to stop"
            )
            return swapped_in, self.check_room(admitted)
        for group in swapped_in + admitted:
            earlier = [other for other in [*s.swapped, *s.waiting] if s.policy(other) < s.policy(group)]
            assert not earlier, f"{group} was let in before {earlier}, who come first in the order of the policy"
        return swapped_in, self.check_room(admitted)

    def check_room(self, admitted):
        s = self.scheduler
        if admitted:
            newest, free = admitted[-1], self.pool.num_free
            wanted = blocks_wanted(newest, self.pool.block_size, self.holders(s.running))
            assert wanted <= free, (
                f"{newest} was let in, but takes {wanted} blocks more until its tokens are computed, and {free} are "
                "free: too few were counted"
            )
            assert free - wanted >= self.watermark_blocks or s.running == [newest], (
                f"{newest} was let in and leaves {free - wanted} blocks, below the watermark of {self.watermark_blocks}"
            )
        return admitted

    def check_limits(self, plan):
        total = sum(chunk.num_tokens for chunk in plan.chunks)
        assert total <= self.max_num_batched_tokens, (
            f"the step computes {total} tokens, but max_num_batched_tokens is {self.max_num_batched_tokens}"
        )
        taken = sum(group.max_num_seqs for group in self.scheduler.running)
        assert taken <= self.max_num_seqs, (
            f"the running groups may have {taken} sequences, but max_num_seqs is {self.max_num_seqs}"
        )

    # ---- what is computed

    def check_turns(self, plan, before, newcomers):
        turns = [chunk.group for chunk in plan.chunks]
        in_order = [group for group in before.running + newcomers for turn in turns if turn is group]
        assert turns == in_order, f"the first in the order should be computed first: {in_order}, not {turns}"
        left = self.max_num_batched_tokens
        for group in before.running:
            if group not in plan.preempted:
                is_decoding = not group.is_sharing and all(s.num_uncomputed_tokens == 1 for s in group.sequences)
                assert group in turns or left < (len(group.sequences) if is_decoding else 1), (
                    f"{group} got nothing although there was room for {left} more tokens in the step"
                )
            left -= sum(chunk.num_tokens for chunk in plan.chunks if chunk.group is group)

    def check_chunks(self, group, plan, before, is_new):
        assert group.status is GroupStatus.RUNNING, f"{group} is computed, so its status should be RUNNING"
        chunks = [chunk for chunk in plan.chunks if chunk.group is group]
        common = self.common[group]
        for chunk in chunks:
            seq, start, num_tokens = chunk.seq, chunk.start, chunk.num_tokens
            done, length = before.computed[seq], len(seq.token_ids)
            assert num_tokens >= 1 and start + num_tokens <= length, (
                f"{seq}: a chunk of {num_tokens} tokens from token {start}, out of {length}: of a text that was found "
                "in the prefix cache at least one token has to be left to compute"
            )
            assert is_new or start == done, (
                f"{seq}: {done} tokens were computed, so token {done} is next, not token {start}"
            )
            assert seq.num_computed_tokens == start + num_tokens, (
                f"{seq}: its chunk is tokens {start} to {start + num_tokens - 1}, but {seq.num_computed_tokens} tokens "
                "have slots: what was found in the prefix cache, and then the chunk, no more and no less"
            )
            assert seq is group.leader or start >= common, (
                f"{seq} computes token {start}, but the first {common} tokens of its group are the same: the leader "
                "computes them for all, and only then the others fork"
            )
        receivers = [seq for chunk in chunks for seq in chunk.receivers]
        assert receivers in ([], group.sequences), (
            f"{receivers} get a token, but the group is {group.sequences}: all get one in the same step, or nobody"
        )

    def check_progress(self, plan, before):
        if self.groups:
            assert self.scheduler.running, f"{self.groups} wait, and nobody runs: this would go on for ever"
            first = self.scheduler.running[0]
            assert first in [chunk.group for chunk in plan.chunks], (
                f"{first} is first in the order, but this step does nothing for it: it starves"
            )
        if before.running and plan.preempted:
            assert before.running[0] not in plan.preempted, f"{before.running[0]} is first, and nobody may displace it"
