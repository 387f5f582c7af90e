"""Lesson 9, solved. (minipage's own is minipage/scheduling/scheduler.py.)"""

from __future__ import annotations

from minipage.scheduling import Scheduler, SequenceGroup, StepPlan
from minipage.scheduling.group import GroupStatus
from minipage.scheduling.plan import Chunk, blocks_for


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
