"""Lesson 9 in another style: who is to go is asked in one place, and early returns."""

from minipage.memory import blocks_needed
from minipage.scheduling import Admission, Scheduler
from minipage.scheduling.chunks import blocks_for
from minipage.scheduling.group import GroupStatus


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


class Admitting(Scheduler):
    reserve_full, tokens_left = True, 0

    def admission(self, group, cached):
        pool, size = self.block_pool, self.block_pool.block_size
        if pool.num_blocks < group.max_blocks(size):
            return Admission.NEVER
        todo = group.leader.token_ids[size * len(cached) :]
        if not self.reserve_full:
            todo = todo[: self.tokens_left]
        asleep = [block for block in cached if block in pool.free_queue]
        left = pool.num_free - len(asleep) - blocks_needed(len(todo), size)
        if left < (self.watermark_blocks if self.running else 0):
            return Admission.LATER
        return Admission.NOW if self._seats_left() else Admission.LATER

    def _admit(self, plan, budget):
        self.tokens_left = budget
        super()._admit(plan, budget)

    def _give_slots(self, chunks, plan):
        num_tokens = super()._give_slots(chunks, plan)
        self.tokens_left -= num_tokens
        return num_tokens
