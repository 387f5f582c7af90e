"""Lesson 6 in another style: running sums, early returns, and one loop over everybody who may compute."""

from itertools import accumulate

from minipage.scheduling import Admission, Scheduler, StepPlan
from minipage.scheduling.group import GroupStatus


def share_out(wanted, budget):
    before = [0, *accumulate(wanted)]
    return [max(0, min(mine, budget - earlier)) for mine, earlier in zip(wanted, before)]


class ContinuousBatching(Scheduler):
    def admission(self, group, cached):
        size, pool = self.block_pool.block_size, self.block_pool
        if group.max_blocks(size) > pool.num_blocks:
            return Admission.NEVER
        if group.max_num_seqs > self._seats_left():
            return Admission.LATER
        in_use = [block for block in cached if pool.ref_count(block) > 0]
        left = pool.num_free - (group.blocks_to_start(size) - len(in_use))
        must_stay = self.watermark_blocks if self.running else 0
        return Admission.NOW if left >= must_stay else Admission.LATER

    def _admit(self, plan, budget):
        for group in list(self.waiting):
            found = self._find_prefix(group)
            if budget <= 0 or self.admission(group, found[0]) != Admission.NOW:
                return
            self._start(group, *found)
            chunks = group.next_chunks(budget)
            self._give_slots(chunks, plan)
            budget -= sum(chunk.num_tokens for chunk in chunks)

    def schedule(self):
        plan = StepPlan([], [], [], [], [])
        left = self.max_num_batched_tokens
        i = 0
        while i < len(self.running):
            group = self.running[i]
            chunks = group.next_chunks(left)
            if not self._make_room(group, chunks, plan):
                return plan
            left -= self._give_slots(chunks, plan)
            i += 1
        if plan.preempted:
            return plan
        left = self._swap_in(plan, left)
        if self.swapped == []:
            self._admit(plan, left)
        return plan

    def _start(self, group, cached, keys):
        self.waiting.remove(group)
        self._enqueue(group, GroupStatus.RUNNING)
        if self.prefix_cache:
            self.prefix_cache.adopt(group.leader.block_table, cached, keys)
            self.num_queried_tokens += group.shared_len
            self.num_hit_tokens += group.leader.num_computed_tokens
        group.fork_followers()
