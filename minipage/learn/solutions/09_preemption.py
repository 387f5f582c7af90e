"""Lesson 9, solved. (minipage's own is minipage/scheduling/scheduler.py.)"""

from __future__ import annotations

from minipage.memory import blocks_needed
from minipage.scheduling import Admission, Scheduler, SequenceGroup, StepPlan
from minipage.scheduling.chunks import Chunk, blocks_for
from minipage.scheduling.group import GroupStatus


class Preempting(Scheduler):
    def _make_room(self, group: SequenceGroup, chunks: list[Chunk], plan: StepPlan) -> bool:
        while blocks_for(chunks) > self.block_pool.num_free:
            last = self.running[-1]
            self.preempt(last, plan)
            if last is group:
                return False
        return True

    def preempt(self, group: SequenceGroup, plan: StepPlan) -> None:
        self._dequeue(group)
        group.num_preemptions += 1
        plan.preempted.append(group)
        wanted = self.preemption == "swap" or (self.preemption == "auto" and len(group.sequences) > 1)
        if wanted and self.swap_pool and group.num_blocks <= self.swap_pool.num_free:
            plan.swap_out.extend(group.move_to(self.swap_pool))
            self._enqueue(group, GroupStatus.SWAPPED)
        else:
            group.restart(self.block_pool)
            self._enqueue(group, GroupStatus.WAITING)

    def _swap_in(self, plan: StepPlan, budget: int) -> int:
        while self.swapped and self._seats_left() >= self.swapped[0].max_num_seqs:
            group = self.swapped[0]
            chunks = group.next_chunks(budget)
            if group.num_blocks + blocks_for(chunks) > self.block_pool.num_free:
                break
            self._dequeue(group)
            plan.swap_in.extend(group.move_to(self.block_pool))
            self._enqueue(group, GroupStatus.RUNNING)
            budget -= self._give_slots(chunks, plan)
        return budget


class Admitting(Scheduler):
    reserve_full = True
    tokens_left = 0

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        pool = self.block_pool
        if group.max_blocks(pool.block_size) > pool.num_blocks:
            return Admission.NEVER
        num_tokens = len(group.leader.token_ids) - len(cached) * pool.block_size
        if not self.reserve_full:
            num_tokens = min(num_tokens, self.tokens_left)
        needed = blocks_needed(num_tokens, pool.block_size) + sum(pool.ref_count(block) == 0 for block in cached)
        spare = pool.num_free - (self.watermark_blocks if self.running else 0)
        return Admission.NOW if needed <= spare and self._seats_left() >= 1 else Admission.LATER

    def _admit(self, plan: StepPlan, budget: int) -> None:
        self.tokens_left = budget
        super()._admit(plan, budget)

    def _give_slots(self, chunks: list[Chunk], plan: StepPlan) -> int:
        num_tokens = super()._give_slots(chunks, plan)
        self.tokens_left -= num_tokens
        return num_tokens
