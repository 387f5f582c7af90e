"""Lesson 6 in a third style: a second base class, an __init__ of its own, super(), and recursion."""

from functools import partial

from minipage.scheduling import Admission, Scheduler, StepPlan
from minipage.scheduling.group import GroupStatus


def share_out(wanted, budget):
    if not wanted:
        return []
    first = min(wanted[0], budget)
    return [first, *share_out(wanted[1:], budget - first)]


class Budgeted:
    """What a step may still compute, kept in one place."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.left = 0

    def spend(self, chunks, plan):
        self.left -= self._give_slots(chunks, plan)


class ContinuousBatching(Budgeted, Scheduler):
    def __init__(self, block_pool, *args, **options):
        super().__init__(block_pool, *args, **options)
        self.needed = partial(self.needed_of, block_pool)

    @staticmethod
    def needed_of(pool, group, cached):
        held = [block for block in cached if pool.ref_count(block)]
        return group.blocks_to_start(pool.block_size) - len(held)

    @property
    def spare(self):
        return self.block_pool.num_free - self.watermark_blocks * bool(self.running)

    def _give_slots(self, chunks, plan):
        return super()._give_slots(chunks, plan)

    def _seats_left(self):
        return super()._seats_left()

    def admission(self, group, cached):
        if group.max_blocks(self.block_pool.block_size) > self.block_pool.num_blocks:
            return Admission.NEVER
        has_seats = group.max_num_seqs <= self._seats_left()
        return Admission.NOW if has_seats and self.needed(group, cached) <= self.spare else Admission.LATER

    def _admit(self, plan, budget):
        if not self.waiting or budget < 1:
            return
        first = self.waiting[0]
        cached, keys = self._find_prefix(first)
        if self.admission(first, cached) is Admission.NOW:
            self._start(first, cached, keys)
            self._admit(plan, budget - self._give_slots(first.next_chunks(budget), plan))

    def schedule(self):
        plan, self.left = StepPlan(), self.max_num_batched_tokens
        for group in self.running:
            chunks = group.next_chunks(self.left)
            if self._make_room(group, chunks, plan):
                self.spend(chunks, plan)
            else:
                break
        if plan.preempted == []:
            self.left = self._swap_in(plan, self.left)
            if len(self.swapped) == 0:
                self._admit(plan, self.left)
        return plan

    def _start(self, group, cached, keys):
        self.waiting.remove(group)
        self._enqueue(group, GroupStatus.RUNNING)
        if self.prefix_cache:
            self.prefix_cache.adopt(group.leader.block_table, cached, keys)
            self._count_found(group)
        group.fork_followers()
