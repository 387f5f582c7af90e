"""A second scheduler that keeps the same promises, written in other words: one decision a method.

It shows that the machine asks for nothing but the promises, and lets a mutant get one decision wrong at a time.
"""

from collections import Counter

from minipage.memory import blocks_needed
from minipage.scheduling import Chunk, GroupStatus, Scheduler, StepPlan


class Rewritten(Scheduler):
    def schedule(self):
        plan = StepPlan()
        self.go_on(plan)
        if self.may_let_in(plan):
            self.bring_back(plan)
            self.admit(plan)
        return plan

    # ---- the three phases

    def go_on(self, plan):
        for group in list(self.running):
            if group in self.running:
                chunks = self.chunks(group, plan)
                while group in self.running and self.count_blocks(chunks) > self.block_pool.num_free:
                    self.preempt(self.victim(group), plan)
                if group in self.running:
                    self.compute(plan, chunks)

    def bring_back(self, plan):
        while self.swapped and self.budget(plan) > 0:
            group = self.swapped[0]
            if not self.has_seats(group) or not self.is_first(group, self.waiting):
                break
            chunks = self.chunks(group, plan)
            if group.num_blocks + self.count_blocks(chunks) > self.block_pool.num_free:
                break
            plan.swap_in.extend(group.move_to(self.block_pool))
            self.swapped.remove(group)
            self.run(group)
            self.compute(plan, chunks)

    def may_let_in(self, plan):
        return not plan.preempted

    def is_first(self, group, others):
        return all(self.policy(group) <= self.policy(other) for other in others)

    def admit(self, plan):
        while self.waiting and self.budget(plan) > 0:
            group = self.next_to_admit()
            if not self.is_first(group, self.swapped):
                break
            found, hashes = self.known_prefix(group)
            wanted = self.blocks_to_start(group, found) + self.spare()
            if not self.has_seats(group) or wanted > self.block_pool.num_free:
                break
            self.waiting.remove(group)
            self.run(group)
            self.begin(group, found, hashes, plan)

    def begin(self, group, found, hashes, plan):
        if found:
            self.prefix_cache.adopt(group.leader.block_table, found, hashes)
            group.fork_followers()
        self.compute(plan, self.chunks(group, plan))

    # ---- the decisions

    def victim(self, group):
        return self.running[-1]

    def next_to_admit(self):
        return self.waiting[0]

    def spare(self):
        return self.watermark_blocks if self.running else 0

    def budget(self, plan):
        return self.max_num_batched_tokens - sum(chunk.num_tokens for chunk in plan.chunks)

    def has_seats(self, group):
        return sum(each.max_num_seqs for each in [*self.running, group]) <= self.max_num_seqs

    def known_prefix(self, group):
        if self.prefix_cache is None:
            return [], []
        most = group.shared_len // self.block_pool.block_size
        blocks, hashes = self.prefix_cache.find(group.leader.token_ids, group.cache_salt)
        return blocks[:most], hashes[:most]

    def blocks_to_start(self, group, found):
        """All that the group takes until it has caught up; a found block may have to come from the free queue, too."""
        size, length = self.block_pool.block_size, len(group.leader.token_ids)
        own = blocks_needed(length, size) - group.shared_len // size
        followers = len(group.sequences) - 1 if length > group.shared_len else 0
        return blocks_needed(length, size) + followers * own - len(found) + self.num_free_among(found)

    def num_free_among(self, found):
        return sum(self.block_pool.ref_count(block) == 0 for block in found)

    def count_blocks(self, chunks):
        """New blocks, and one to copy into for each writer of a shared block but for the last, if nobody else reads."""
        total, writers = 0, Counter()
        for chunk in chunks:
            table = chunk.seq.block_table
            total += blocks_needed(table.num_tokens + chunk.num_tokens, table.pool.block_size) - len(table)
            if table.shared_tail() is not None:
                writers[table.shared_tail(), table.pool] += 1
        return total + sum(self.copies(n, pool.ref_count(block)) for (block, pool), n in writers.items())

    def copies(self, num_writers, num_readers):
        return num_writers - 1 if num_writers == num_readers else num_writers

    def chunks(self, group, plan):
        left, chunks = self.budget(plan), []
        for seq, num_tokens in self.tokens_to_compute(group, left):
            num_tokens = min(num_tokens, left)
            left -= num_tokens
            if num_tokens > 0:
                chunks.append(Chunk(group, seq, self.start(seq), num_tokens))
        return chunks

    def tokens_to_compute(self, group, budget):
        if group.is_sharing:
            return [(group.leader, group.shared_len - group.leader.num_computed_tokens)]
        to_catch_up = [(seq, seq.num_uncomputed_tokens - 1) for seq in group.sequences]
        if any(num_tokens for _, num_tokens in to_catch_up):
            return to_catch_up
        return [(seq, 1) for seq in group.sequences] if budget >= len(group.sequences) else []

    def start(self, seq):
        return seq.num_computed_tokens

    # ---- carrying them out

    def run(self, group):
        group.status = GroupStatus.RUNNING
        self.running.append(group)
        self.running.sort(key=self.policy)

    def compute(self, plan, chunks):
        plan.chunks.extend(chunks)
        for chunk in chunks:
            plan.copies.extend(chunk.seq.block_table.append(chunk.num_tokens))
