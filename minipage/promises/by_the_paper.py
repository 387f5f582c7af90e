"""The scheduler that lessons 6 and 9 rebuild: the paper's rule for those who are swapped out, and minipage's otherwise.

"Nobody is admitted while anybody is swapped out" (section 4.5) is one line, and keeps swap space from growing without
end. minipage's own scheduler lets the policy decide between those who are swapped out and those who wait. A class that
keeps the paper's rule runs in the engine just as well.
"""

from __future__ import annotations

from minipage.scheduling import Scheduler, SequenceGroup, StepPlan


class ByThePaper(Scheduler):
    swapped_out_come_first = True  # plan_checks.py looks at it

    def schedule(self) -> StepPlan:
        plan = StepPlan()
        budget = self.max_num_batched_tokens
        for group in self.running:
            chunks = group.next_chunks(budget)
            if not self._make_room(group, chunks, plan):
                break
            budget -= self._give_slots(chunks, plan)
        if not plan.preempted:
            budget = self._swap_in(plan, budget)
            if not self.swapped:
                self._admit(plan, budget)
        return plan

    def _count_found(self, group: SequenceGroup) -> None:
        """Each time, as somebody may write it who has not been told of more."""
        self.num_queried_tokens += group.shared_len
        self.num_hit_tokens += group.leader.num_computed_tokens


NAMES = ("swapped_out_come_first", "schedule", "_count_found")
