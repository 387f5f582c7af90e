"""Lesson 6, solved. (minipage's own is minipage/scheduling/scheduler.py.)"""

from __future__ import annotations

from minipage.scheduling import Admission, Scheduler, SequenceGroup, StepPlan
from minipage.scheduling.group import GroupStatus


def share_out(wanted: list[int], budget: int) -> list[int]:
    shares = []
    for num_tokens in wanted:
        shares.append(min(num_tokens, budget))
        budget -= shares[-1]
    return shares


class ContinuousBatching(Scheduler):
    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        pool = self.block_pool
        if group.max_blocks(pool.block_size) > pool.num_blocks:
            return Admission.NEVER
        taken_from_queue = sum(pool.ref_count(block) == 0 for block in cached)
        needed = group.blocks_to_start(pool.block_size) - len(cached) + taken_from_queue
        spare = pool.num_free - (self.watermark_blocks if self.running else 0)
        fits = needed <= spare and group.max_num_seqs <= self._seats_left()
        return Admission.NOW if fits else Admission.LATER

    def _admit(self, plan: StepPlan, budget: int) -> None:
        while self.waiting and budget > 0:
            group = self.waiting[0]
            cached, hashes = self._find_prefix(group)
            if self.admission(group, cached) is not Admission.NOW:
                break
            self._start(group, cached, hashes)
            budget -= self._give_slots(group.next_chunks(budget), plan)

    def schedule(self) -> StepPlan:
        plan = StepPlan()
        budget = self.max_num_batched_tokens
        for group in self.running:  # from the first; a preemption takes from the other end of this very list
            chunks = group.next_chunks(budget)
            if not self._make_room(group, chunks, plan):
                break
            budget -= self._give_slots(chunks, plan)
        if not plan.preempted:
            budget = self._swap_in(plan, budget)
            if not self.swapped:
                self._admit(plan, budget)
        return plan

    def _start(self, group: SequenceGroup, cached: list[int], hashes: list[bytes]) -> None:
        self.waiting.remove(group)
        self._enqueue(group, GroupStatus.RUNNING)
        if self.prefix_cache:
            self.prefix_cache.adopt(group.leader.block_table, cached, hashes)
            self._count_found(group)
        group.fork_followers()
