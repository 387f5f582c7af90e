"""Lesson 6: continuous batching. Replace each `raise NotImplementedError(...)` by code of yours.

The scheduler decides anew at every step who computes how many tokens, `max_num_batched_tokens` at most:

    1. those who run, in order: one token each, or the next chunk of a prompt
    2. then those who were swapped out come back, as far as there are blocks (lesson 9)
    3. then those who wait, first come first served, while there are tokens, blocks and seats left

Your class is minipage's scheduler with some methods of your own. What you need of the rest:

    self.running, self.waiting, self.swapped     lists of groups (a group is a request), first to be served first
    self.block_pool, self.max_num_seqs, self.max_num_batched_tokens, self.watermark_blocks
    group.next_chunks(budget)                    what the group would compute next, with at most `budget` tokens
    self._make_room(group, chunks, plan)         preempts others until the chunks fit; False if that was the group itself
    self._give_slots(chunks, plan)               puts chunks into the plan; returns how many tokens they are
    self._swap_in(plan, budget)                  step 2; returns the budget that is left
    self._seats_left()                           sequences that may still join

The class may have more: methods of your own, another base class beside the scheduler, an __init__ that takes what the
scheduler's takes and hands it on to super().__init__. What you are to write is yours, though, and not super()'s.
"""

from __future__ import annotations

from minipage.scheduling import Admission, Scheduler, SequenceGroup, StepPlan


def share_out(wanted: list[int], budget: int) -> list[int]:
    """Exercise 6.1: how many tokens each sequence computes in a step, when all together may compute `budget`.

    `wanted` says how many each has left, in the order in which they are served: the first gets all it wants if it can,
    then the second, and so on; a long prompt is cut into chunks, and who comes too late gets 0. A new list comes back, and
    `wanted` stays as it is.

    share_out([1, 1, 10, 5], budget=8) is [1, 1, 6, 0].
    """
    raise NotImplementedError(
        "Exercise 6.1: as much as it wants, or as much as is left"
    )


class ContinuousBatching(Scheduler):
    """minipage's scheduler, with your admission and your schedule."""

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        """Exercise 6.2: whether a waiting group may start, if the blocks `cached` already hold its beginning.

            Admission.NEVER   it could grow to more blocks (`group.max_blocks(block_size)`) than the whole pool has
            Admission.NOW     there are enough free blocks for all the tokens it has now
                              (`group.blocks_to_start(block_size)` less those that are cached), and seats for all its
                              sequences (`group.max_num_seqs`)
            Admission.LATER   otherwise

        A cached block that is free (`ref_count` 0) has to leave the free queue, so it counts as needed after all. While
        others run, `self.watermark_blocks` free blocks are not to be touched, so that they do not run dry at once. It is
        a question: nobody is started yet, and nothing changes.
        """
        raise NotImplementedError("Exercise 6.2: NEVER, NOW or LATER")

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Exercise 6.3: let waiting groups in, in order, while there is budget and the first may start NOW.

        Nobody overtakes: when the first in `self.waiting` has to wait, so do all behind it. For each newcomer:
        `self._find_prefix(group)` gives (cached blocks, their hashes); `admission` needs the blocks, and
        `self._start(group, cached, hashes)` makes it run; then it computes what `group.next_chunks(budget)` says
        (`self._give_slots`), and the budget shrinks. Nothing is returned.
        """
        raise NotImplementedError(
            "Exercise 6.3: let in the first who waits, as long as it may start"
        )

    def schedule(self) -> StepPlan:
        """Exercise 6.4: choose what the next step computes: 1, 2 and 3 of the picture above.

        Begin with `StepPlan()`. Stop with step 1 when a group could not get room (`_make_room` is False). Who was swapped
        out may come back also when no budget is left: what it needs is blocks. Nobody comes in (2, 3) in a step that had
        to preempt (`plan.preempted`), and nobody is admitted (3) while anybody is still swapped out: the paper's rule.
        (minipage's own lets the policy decide between those two.) Returns the plan.
        """
        raise NotImplementedError(
            "Exercise 6.4: who runs, who comes back, who is let in"
        )

    def _start(
        self, group: SequenceGroup, cached: list[int], hashes: list[bytes]
    ) -> None:
        """A waiting group runs from now on, beginning with the cached blocks. (Given.)"""
        from minipage.scheduling.group import GroupStatus

        self.waiting.remove(group)
        self._enqueue(group, GroupStatus.RUNNING)
        if self.prefix_cache:
            self.prefix_cache.adopt(group.leader.block_table, cached, hashes)
            self._count_found(group)
        group.fork_followers()
