"""Schedulers that make a wrong decision, each as some real one did: whom to run, whom to let in, what to compute.

test_scheduler_mutants.py says what has to be noticed about each. Those that lose something are in broken_groups.py.
"""

from dataclasses import replace

from rewritten_scheduler import Rewritten

from minipage.scheduling import Admission, GroupStatus, Scheduler
from minipage.scheduling.policy import first_come_first_served

# ---- who runs, and who gives way -------------------------------------------------------------------------------------


class PreemptsTheFirst(Rewritten):
    def victim(self, group):
        return self.running[0]


class PreemptsTheGroupThatAsks(Rewritten):
    def victim(self, group):
        return group


class PreemptsBeforeItMust(Rewritten):
    def go_on(self, plan):
        if self.block_pool.num_free == 0 and len(self.running) > 1:
            self.preempt(self.running[-1], plan)
        super().go_on(plan)


class StopsWhenSwapSpaceIsFull(Rewritten):
    def go_on(self, plan):
        if not self.running or self.running[-1].num_blocks <= self.swap_pool.num_free:
            super().go_on(plan)


class SwappedNeverComeBack(Rewritten):
    def bring_back(self, plan):
        pass


class WaitingBeforeRunning(Rewritten):
    def go_on(self, plan):
        self.admit(plan)
        super().go_on(plan)


class PriorityIsIgnored(Scheduler):
    def __init__(self, *args, policy, **options):
        super().__init__(*args, policy=first_come_first_served, **options)


class PreemptedGoesToTheBackOfTheQueue(Scheduler):
    def preempt(self, group, plan):
        super().preempt(group, plan)
        if group.status is GroupStatus.WAITING:
            self.waiting.append(self.waiting.pop(0))


# ---- who is let in ---------------------------------------------------------------------------------------------------


class AdmitsWhatCanNeverFit(Scheduler):
    def add(self, group):
        group.max_num_seqs, wanted = 0, group.max_num_seqs
        super().add(group)
        group.max_num_seqs = wanted


class AdmitsWhoeverFits(Rewritten):
    def next_to_admit(self):
        fitting = [g for g in self.waiting if self.blocks_to_start(g, []) <= self.block_pool.num_free]
        return [*fitting, self.waiting[0]][0]


class AdmitsWithoutFreeBlocks(Scheduler):
    def admission(self, group, cached):
        return Admission.NOW if group.max_num_seqs <= self._seats_left() else Admission.LATER


class AdmitsWhenOnlyTheFirstChunkFits(Rewritten):
    def blocks_to_start(self, group, found):
        length = len(group.leader.token_ids)
        return min(1, length) + self.num_free_among(found)


class ForgetsTheFollowersOwnBlocks(Rewritten):
    def blocks_to_start(self, group, found):
        size = self.block_pool.block_size
        return -(-len(group.leader.token_ids) // size) - len(found) + self.num_free_among(found)


class FoundBlocksCostNothing(Rewritten):
    def num_free_among(self, found):
        return 0


class FailedAdmissionKeepsReferences(Scheduler):
    def admission(self, group, cached):
        answer = super().admission(group, cached)
        for block in cached if answer is Admission.LATER else ():
            if self.block_pool.ref_count(block):
                self.block_pool.share(block)
        return answer


class NeverGivesTheLastBlockAway(Rewritten):
    def spare(self):
        return 1


class WatermarkIsIgnored(Rewritten):
    def spare(self):
        return 0


class WatermarkEvenIfNobodyRuns(Rewritten):
    def spare(self):
        return self.watermark_blocks


class AdmitsBeforeSomebodySwappedOut(Rewritten):
    def is_first(self, group, others):
        return others is self.swapped or super().is_first(group, others)


class BringsBackBeforeSomebodyWhoWaits(Rewritten):
    def is_first(self, group, others):
        return others is self.waiting or super().is_first(group, others)


class AdmitsAfterPreempting(Rewritten):
    def may_let_in(self, plan):
        return True


class OneSeatTooMany(Rewritten):
    def has_seats(self, group):
        return sum(each.max_num_seqs for each in [*self.running, group]) <= self.max_num_seqs + 1


class EveryGroupTakesOneSeat(Rewritten):
    def has_seats(self, group):
        return len(self.running) < self.max_num_seqs


# ---- what is computed ------------------------------------------------------------------------------------------------


class PromptsIgnoreTheBudget(Rewritten):
    def tokens_to_compute(self, group, budget):
        if not group.is_sharing:
            return super().tokens_to_compute(group, budget)
        return [(group.leader, group.shared_len - group.leader.num_computed_tokens)]

    def budget(self, plan):
        return max(1, super().budget(plan))


class StartsOneTokenLate(Rewritten):
    def start(self, seq):
        return seq.num_computed_tokens + (seq.num_computed_tokens > 0)


class StartsOneTokenEarly(Rewritten):
    def start(self, seq):
        return max(0, seq.num_computed_tokens - 1)


class StartsEveryChunkAtTheBeginning(Rewritten):
    def start(self, seq):
        return 0 if seq.num_uncomputed_tokens > 1 else seq.num_computed_tokens


class CountsTokensBeforeTheHit(Rewritten):
    def begin(self, group, found, hashes, plan):
        chunks = self.chunks(group, plan)
        super().begin(group, found, hashes, replace(plan, chunks=[]))
        plan.chunks.extend(chunks)


class SamplesOfAGroupTakeTurns(Rewritten):
    def tokens_to_compute(self, group, budget):
        wanted = super().tokens_to_compute(group, budget)
        return wanted[:1] if len(wanted) > 1 and all(n == 1 for _, n in wanted) else wanted


class CountsOneCopyTooFew(Rewritten):
    def copies(self, num_writers, num_readers):
        return max(0, super().copies(num_writers, num_readers) - 1)


class CountsNoCopies(Rewritten):
    def copies(self, num_writers, num_readers):
        return 0


class CountsACopyForTheLastWriter(Rewritten):
    def copies(self, num_writers, num_readers):
        return num_writers
