"""Lesson 9: preemption and swapping. Replace each `raise NotImplementedError(...)` by code of yours.

Blocks are given out as texts grow, so the pool can run dry while everybody runs. Then the last to come gives way: it
loses its blocks, and they are computed again later, or were saved in a second memory, the swap pool.

Your class is minipage's scheduler with some methods of your own. What you need of the rest:

    self.running, self.waiting, self.swapped     lists of groups (a group is a request), first to be served first
    self.block_pool, self.swap_pool, self.preemption ("recompute", "swap" or "auto")
    blocks_for(chunks)                           how many free blocks the chunks of one group take
    group.restart(pool)                          frees all blocks; the tokens stay, to be computed again
    group.move_to(pool)                          moves all blocks to another pool; returns what has to be copied
    group.num_blocks, group.sequences            physical blocks that it holds; its sequences
    self._dequeue(group)                         takes it out of whatever list it is in
    self._enqueue(group, GroupStatus.WAITING)    puts it into the list of that status (WAITING, RUNNING, SWAPPED), in order
    self._seats_left(), self._give_slots(chunks, plan), group.next_chunks(budget)      as in lesson 6
    plan                                         the step's StepPlan, five lists that you add to:
        plan.swap_out, plan.swap_in              pairs to copy, (block, swap block) and (swap block, block): what
                                                 group.move_to returns
        plan.preempted                           the groups that lost their blocks in this step, in the order in which
                                                 they lost them
        plan.copies, plan.chunks                 _give_slots adds to these

The class may have more: methods of your own, another base class beside the scheduler, an __init__ that takes what the
scheduler's takes and hands it on to super().__init__. What you are to write is yours, though, and not super()'s.
"""

from __future__ import annotations

from minipage.memory import blocks_needed  # noqa: F401 (for 9.5)
from minipage.scheduling import Admission, Scheduler, SequenceGroup, StepPlan
from minipage.scheduling.chunks import Chunk, blocks_for  # noqa: F401 (and this)
from minipage.scheduling.group import GroupStatus  # noqa: F401 (you will use it)


class Preempting(Scheduler):
    """minipage's scheduler, with your preemption."""

    def _make_room(
        self, group: SequenceGroup, chunks: list[Chunk], plan: StepPlan
    ) -> bool:
        """Exercise 9.1: preempt the last running group until the chunks of `group` fit into the free blocks.

        Use `self.preempt(victim, plan)`. Nobody is preempted if there is room already. `group` is running, too, and may
        itself be the last: then it is preempted like any other, stop and return False, since it does not run in this
        step. Otherwise return True.
        """
        raise NotImplementedError(
            "Exercise 9.1: the last in self.running gives way, until there is room"
        )

    def preempt(self, group: SequenceGroup, plan: StepPlan) -> None:
        """Exercise 9.2: make a running group wait, and give its blocks back.

        It leaves the running list, `group.num_preemptions` goes up by 1, the group is added to `plan.preempted`, it
        restarts from `self.block_pool`, and waits. It keeps every token, the generated ones too: somebody may have read
        them already. (9.2 is asked with `self.preemption` "recompute".)

        Exercise 9.3: if `self.preemption` is "swap", or "auto" and the group has more than one sequence (those in
        `group.sequences`), its blocks are saved instead, provided that there is a swap pool (with "auto" it may be None)
        and that it has room for all of them (`self.swap_pool.num_free`): move it, add the copies to `plan.swap_out`, and
        its status is SWAPPED. It is noted in `plan.preempted` all the same. Without room it is computed again, as in 9.2.
        """
        raise NotImplementedError(
            "Exercise 9.2: take its blocks, keep its tokens, and let it wait"
        )

    def _swap_in(self, plan: StepPlan, budget: int) -> int:
        """Exercise 9.4: bring swapped groups back, in order, as long as the first finds room; returns the budget left.

        It needs seats for `group.max_num_seqs` sequences, and free blocks for all that it holds and for the chunks that
        it computes next (`group.next_chunks(budget)`). Move it to the block pool, add the copies to `plan.swap_in`, let
        it run, give its chunks slots; what they take is gone from the budget for the next one. When the first has to
        stay, so do all behind it. With a budget of 0 there are no next chunks, and it may come back all the same.
        """
        raise NotImplementedError(
            "Exercise 9.4: the first who was swapped out comes back, if all of it fits"
        )


class Admitting(Scheduler):
    """minipage's scheduler, with your admission: who may come in decides how often somebody must go."""

    reserve_full = True  # vLLM's `scheduler_reserve_full_isl`
    tokens_left = (
        0  # how many tokens this step may still compute; kept up to date for you
    )

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        """Exercise 9.5: whether a waiting group may start. (Each group here has one sequence, `group.leader`.)

            Admission.NEVER   it could grow to more blocks (`group.max_blocks(block_size)`) than the whole pool has
            Admission.NOW     there are enough free blocks, and a seat (`self._seats_left()`)
            Admission.LATER   otherwise

        The blocks `cached` hold the beginning of its tokens (`group.leader.token_ids`), all of them full; the tokens after
        them have to be computed. A cached block that is free (`ref_count` 0) leaves the free queue, so it counts as needed.

        How many are enough? With `self.reserve_full`, blocks for all tokens that are to be computed. Without it, for those
        that this step computes: at most `self.tokens_left`. And as long as somebody runs (`self.running`), the
        `self.watermark_blocks` have to stay free, in either case, so that those who run have room to grow.

        It is a question: nobody is started yet, and nothing changes.
        """
        raise NotImplementedError(
            "Exercise 9.5: how many tokens need room, how many blocks is that, how many may be used?"
        )

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """(Given.)"""
        self.tokens_left = budget
        super()._admit(plan, budget)

    def _give_slots(self, chunks: list[Chunk], plan: StepPlan) -> int:
        """(Given.)"""
        num_tokens = super()._give_slots(chunks, plan)
        self.tokens_left -= num_tokens
        return num_tokens
