"""Lesson 9 in a third style: layers of classes in one file, super() between them, an __init__ of its own."""

from minipage.memory import blocks_needed
from minipage.scheduling import Admission, Scheduler
from minipage.scheduling.chunks import blocks_for
from minipage.scheduling.group import GroupStatus


class Recomputing(Scheduler):
    """Only 9.1 and 9.2."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.times = {}

    def _make_room(self, group, chunks, plan):
        if blocks_for(chunks) <= self.block_pool.num_free:
            return True
        victim = self.running[-1]
        self.preempt(victim, plan)
        return victim is not group and self._make_room(group, chunks, plan)

    def preempt(self, group, plan):
        self.leave(group, plan)
        group.restart(self.block_pool)
        self._enqueue(group, GroupStatus.WAITING)

    def leave(self, group, plan):
        super()._dequeue(group)
        self.times[group.group_id] = self.times.get(group.group_id, 0) + 1
        group.num_preemptions += 1
        plan.preempted.append(group)


class Counted:
    """Seats and blocks, asked for in words."""

    def has_seats_for(self, group):
        return self._seats_left() - group.max_num_seqs >= 0

    def has_blocks_for(self, group, chunks):
        return self.block_pool.num_free - group.num_blocks - blocks_for(chunks) >= 0


class Preempting(Counted, Recomputing):
    @property
    def saves(self):
        return {"recompute": (), "swap": range(1, 1000), "auto": range(2, 1000)}[self.preemption]

    def preempt(self, group, plan):
        saved = self.swap_pool is not None and len(group.sequences) in self.saves
        if not saved or self.swap_pool.num_free < group.num_blocks:
            return super().preempt(group, plan)
        self.leave(group, plan)
        for pair in group.move_to(self.swap_pool):
            plan.swap_out.append(pair)
        return self._enqueue(group, GroupStatus.SWAPPED)

    def _swap_in(self, plan, budget):
        if not self.swapped:
            return budget
        first, *_ = self.swapped
        chunks = first.next_chunks(budget)
        if not (self.has_seats_for(first) and self.has_blocks_for(first, chunks)):
            return budget
        self._dequeue(first)
        plan.swap_in[len(plan.swap_in) :] = first.move_to(self.block_pool)
        self._enqueue(first, GroupStatus.RUNNING)
        return self._swap_in(plan, budget - self._give_slots(chunks, plan))


class Admitting(Counted, Scheduler):
    reserve_full, tokens_left = True, 0

    def floor(self):
        return self.watermark_blocks * bool(self.running)

    def wanted(self, group, cached):
        size = self.block_pool.block_size
        limit = float("inf") if self.reserve_full else self.tokens_left
        computed = min(len(group.leader.token_ids) - len(cached) * size, limit)
        return blocks_needed(computed, size) + [self.block_pool.ref_count(b) for b in cached].count(0)

    def admission(self, group, cached):
        if group.max_blocks(self.block_pool.block_size) > self.block_pool.num_blocks:
            return Admission.NEVER
        fits = self.block_pool.num_free - self.wanted(group, cached) >= self.floor()
        return Admission.NOW if fits and self.has_seats_for(group) else Admission.LATER

    def _admit(self, plan, budget):
        self.tokens_left = budget
        super()._admit(plan, budget)

    def _give_slots(self, chunks, plan):
        num_tokens = super()._give_slots(chunks, plan)
        self.tokens_left -= num_tokens
        return num_tokens
