"""Schedulers, groups, block tables and caches that lose blocks, tokens or K and V, each as some real one did.

test_scheduler_mutants.py says what has to be noticed about each of them.
"""

from dataclasses import replace

from minipage.memory import BlockTable, PrefixCache
from minipage.scheduling import GroupStatus, Scheduler, SequenceGroup

# ---- when the others fork from the leader ----------------------------------------------------------------------------


class EverySequenceComputesThePrompt(SequenceGroup):
    def fork_followers(self):
        self.is_sharing = False


class FollowersForkBeforeTheLeaderIsDone(SequenceGroup):
    def next_chunks(self, budget):
        chunks = super().next_chunks(budget)
        if self.is_sharing and self.leader.num_computed_tokens > 0:
            self.is_sharing = False
            for seq in self.sequences[1:]:
                seq.block_table = self.leader.block_table.fork()
        return chunks


class ForksWhenItIsPlanned(Scheduler):
    def schedule(self):
        plan = super().schedule()
        for chunk in plan.chunks:
            chunk.group.fork_followers()
        return plan


# ---- losing blocks and tokens ----------------------------------------------------------------------------------------


class PreemptionLosesGeneratedTokens(Scheduler):
    def preempt(self, group, plan):
        super().preempt(group, plan)
        for seq in group.sequences:
            del seq.token_ids[seq.num_prompt_tokens :]


class PreemptionKeepsTheBlocks(SequenceGroup):
    def restart(self, pool):
        self.is_sharing = True


class PreemptsAGroupInPart(SequenceGroup):
    def restart(self, pool):
        first, self.sequences = self.sequences[:1], self.sequences[1:] or self.sequences
        super().restart(pool)
        self.sequences = self.sequences if first == self.sequences else first + self.sequences


class EverybodyResumesFromTheLeadersText(SequenceGroup):
    def restart(self, pool):
        super().restart(pool)
        self.shared_len = len(self.leader.token_ids)


class SharedBlocksMoveOncePerSequence(SequenceGroup):
    def move_to(self, pool):
        copies = []
        for seq in self.sequences:
            moved = {}
            seq.block_table.move_to(pool, moved)
            copies += moved.items()
        return copies


class SwapOutKeepsItsBlocks(BlockTable):
    def move_to(self, pool, moved):
        for block in self.blocks:
            self.pool.share(block)
        super().move_to(pool, moved)


class SwapOutCopiesNothing(Scheduler):
    def schedule(self):
        plan = super().schedule()
        plan.swap_out.clear()
        return plan


class SwapInMixesBlocksUp(Scheduler):
    def schedule(self):
        plan = super().schedule()
        sources, places = [s for s, _ in plan.swap_in], [d for _, d in plan.swap_in]
        return replace(plan, swap_in=list(zip(sources, places[1:] + places[:1])))


class SwapsOutWithoutRoom(SequenceGroup):
    num_blocks = 0


class AbortedStaysInItsQueue(Scheduler):
    def remove(self, group):
        queue = {
            GroupStatus.WAITING: self.waiting,
            GroupStatus.RUNNING: self.running,
            GroupStatus.SWAPPED: self.swapped,
        }[group.status]
        super().remove(group)
        queue.append(group)


class AbortForgetsSwapSpace(Scheduler):
    def remove(self, group):
        if group.status is not GroupStatus.SWAPPED:
            return super().remove(group)
        self.swapped.remove(group)
        self.groups.pop(group, None)
        group.status = GroupStatus.FINISHED
        group.sequences = []


class FinishedKeepTheirBlocks(Scheduler):
    def finish(self, group, seq):
        for block in list(seq.block_table):
            self.block_pool.share(block)
        super().finish(group, seq)


class FinishedKeepRunning(Scheduler):
    def finish(self, group, seq):
        seq.block_table.free()
        group.sequences.remove(seq)


class FailedStepIsTrusted(Scheduler):
    def recompute_all(self):
        pass


class FailedStepForgetsTheSwapped(Scheduler):
    def recompute_all(self):
        kept = self.swapped
        super().recompute_all()
        for group in kept:
            self._dequeue(group)
            self._enqueue(group, GroupStatus.SWAPPED)


# ---- what the prefix cache may do to a scheduler ---------------------------------------------------------------------


class HitLeavesNothingToCompute(PrefixCache):
    def find(self, token_ids, salt=""):
        return super().find([*token_ids, 0], salt)


class SaltIsIgnored(PrefixCache):
    def root_hash(self, salt):
        return b""


class ReusedBlocksStayKnown(PrefixCache):
    def forget(self, block):
        pass


class PublishesBeforeItIsWritten(Scheduler):
    def schedule(self):
        plan = super().schedule()
        for chunk in plan.chunks if self.prefix_cache else ():
            self.prefix_cache.publish(chunk.seq.block_table, chunk.seq.token_ids, chunk.group.cache_salt)
        return plan
