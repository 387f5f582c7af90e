"""Lesson 9 in another style: who is to go is asked in one place, and early returns."""

from minipage.scheduling import Scheduler
from minipage.scheduling.group import GroupStatus
from minipage.scheduling.plan import blocks_for


class Preempting(Scheduler):
    def _make_room(self, group, chunks, plan):
        def is_short():
            return self.block_pool.num_free < blocks_for(chunks)

        while is_short():
            *_, victim = self.running
            self.preempt(victim, plan)
            if victim not in self.running and victim is group:
                return False
        return True

    def preempt(self, group, plan):
        self.running.remove(group)
        plan.preempted.append(group)
        group.num_preemptions += 1
        if self.can_save(group):
            plan.swap_out[len(plan.swap_out) :] = group.move_to(self.swap_pool)
            self._enqueue(group, GroupStatus.SWAPPED)
            return
        group.restart(self.block_pool)
        self._enqueue(group, GroupStatus.WAITING)

    def can_save(self, group):
        if self.swap_pool is None or self.preemption == "recompute":
            return False
        if self.preemption == "auto" and len(group.sequences) == 1:
            return False
        return group.num_blocks <= self.swap_pool.num_free

    def _swap_in(self, plan, budget):
        for group in list(self.swapped):
            if group.max_num_seqs > self._seats_left():
                break
            chunks = group.next_chunks(budget)
            needed = group.num_blocks + blocks_for(chunks)
            if needed > self.block_pool.num_free:
                break
            self.swapped.remove(group)
            plan.swap_in.extend(group.move_to(self.block_pool))
            self._enqueue(group, GroupStatus.RUNNING)
            budget -= self._give_slots(chunks, plan)
        return budget
