"""The bugs of the museum, each as a replacement for one or two functions of minipage.

A mutant is a dictionary {where the function lives: the broken one}, for monkeypatch.setattr. Most call the real
function and spoil what it did, so that what is left is the bug and nothing else.
"""

from dataclasses import replace

import numpy as np

from minipage.memory import BlockPool, BlockTable, PrefixCache, blocks_needed
from minipage.scheduling import Admission, GroupStatus, Scheduler, SequenceGroup
from minipage.worker import batch

POOL, TABLE = "minipage.memory.block_pool.BlockPool.", "minipage.memory.block_table.BlockTable."
CACHE, GROUP = "minipage.memory.prefix_cache.PrefixCache.", "minipage.scheduling.group.SequenceGroup."
SCHEDULER = "minipage.scheduling.scheduler.Scheduler."

real_find, real_init = PrefixCache.find, PrefixCache.__init__
real_schedule, real_admit, real_admission = Scheduler.schedule, Scheduler._admit, Scheduler.admission
real_preempt, real_update, real_restart = Scheduler.preempt, Scheduler.update, SequenceGroup.restart
real_move_to, real_make_batch, real_free = BlockTable.move_to, batch.make_batch, BlockPool.free


# ---- prefix caching


def forgets_nothing(self, block):
    pass


def finds_the_whole_prompt(self, token_ids, salt=""):
    return real_find(self, [*token_ids, 0], salt)


def counts_before_it_looks(self, plan, budget):
    counted = {group: min(budget, group.shared_len) for group in self.waiting}
    real_admit(self, plan, budget)
    plan.chunks[:] = [replace(c, num_tokens=counted.get(c.group, c.num_tokens)) for c in plan.chunks]


def adopts_the_length_but_not_the_blocks(self, table, blocks, hashes):
    table.blocks, table.block_hashes = self.pool.allocate_many(len(blocks)), list(hashes)
    table.num_tokens = len(blocks) * self.pool.block_size


def publishes_every_block(self, table, token_ids, salt="", twins_have_entries=False):
    size = self.pool.block_size
    for i in range(len(table.block_hashes), table.num_tokens // size):
        parent = table.block_hashes[-1] if table.block_hashes else self.root_hash(salt)
        table.block_hashes.append(self.block_hash(parent, token_ids[i * size : (i + 1) * size]))
        block = self._block_of.setdefault(table.block_hashes[-1], table.blocks[i])
        if block == table.blocks[i] or twins_have_entries:
            self._hash_of[table.blocks[i]] = table.block_hashes[-1]


def publishes_twins(self, table, token_ids, salt=""):
    publishes_every_block(self, table, token_ids, salt, twins_have_entries=True)


def key_by_sum(self, parent, token_ids):
    return parent + b"%d," % sum(token_ids)


def knows_no_secret(self, pool):
    real_init(self, pool)
    self._secret = b"minipage"


def keeps_what_it_looked_at(self, group, cached):
    answer = real_admission(self, group, cached)
    for block in cached if answer is Admission.LATER else ():
        self.prefix_cache._hold(block)
    return answer


def takes_found_blocks_for_a_gift(self, group, cached):
    needed = group.blocks_to_start(self.block_pool.block_size) - len(cached)
    return Admission.NOW if needed <= self.block_pool.num_free else Admission.LATER


def frees_the_head_first(self):
    while self.blocks:
        self.pool.free(self.blocks.pop(0))
    self.num_tokens, self.block_hashes = 0, []


# ---- what a step computes


def chunk_length_for_key_length(chunks, group):
    return real_make_batch(chunks, group)._replace(context_lens=np.array([c.num_tokens for c in chunks], np.int32))


def decodes_one_position_late(chunks, group):
    made = real_make_batch(chunks, group)
    is_decode = np.repeat([c.num_tokens == 1 for c in chunks], [c.num_tokens for c in chunks])
    return made._replace(positions=made.positions + is_decode)


def multiplies_the_tail_by_zero(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale):
    """Attention that reads whole blocks and gives the slots after the last token the weight 0. But 0 * NaN is NaN."""
    out = np.empty_like(q)
    for i, (table, length) in enumerate(zip(block_tables, context_lens)):
        blocks = table[: blocks_needed(length, k_cache.shape[1])]
        k = k_cache[blocks].reshape(-1, *k_cache.shape[2:])  # [S, H, D], S at least `length`
        v = v_cache[blocks].reshape(-1, *v_cache.shape[2:])  # [S, H, D]
        start, stop = query_start_loc[i], query_start_loc[i + 1]
        scores = np.einsum("thd,shd->hts", q[start:stop], k) * scale  # [H, T, S]
        visible = np.arange(len(k)) <= np.arange(length - (stop - start), length)[:, None]  # [T, S]
        weights = np.exp(np.where(visible, scores, -np.inf))  # [H, T, S]
        out[start:stop] = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v)  # [T, H, D]
    return out


def prompts_first(self):
    plan = type(real_schedule(EMPTY))([], [], [], [], [])
    if self.waiting:
        self._admit(plan, self.max_num_batched_tokens)
    return plan if plan.chunks else real_schedule(self)


EMPTY = Scheduler(BlockPool(1))


# ---- preemption


def recomputes_only_the_prompt(self, pool):
    real_restart(self, pool)
    self.shared_len = self.leader.num_prompt_tokens


def believes_the_rest_is_there(self, plan):
    real_update(self, plan)
    for chunk in plan.chunks:
        group, seq = chunk.group, chunk.seq
        if group.num_preemptions and seq.num_computed_tokens == seq.num_prompt_tokens:
            seq.block_table.append(seq.num_uncomputed_tokens - 1)


def drops_what_was_generated(self, group, plan):
    real_preempt(self, group, plan)
    for seq in group.sequences:
        del seq.token_ids[seq.num_prompt_tokens :]
    group.shared_len = group.leader.num_prompt_tokens


def moves_without_freeing(self, pool, moved):
    for block in self.blocks:
        self.pool.share(block)
    real_move_to(self, pool, moved)


def waits_for_swap_space(self, group, chunks, plan):
    needed = sum(chunk.seq.block_table.blocks_to_allocate(chunk.num_tokens) for chunk in chunks)
    while needed > self.block_pool.num_free:
        if self.running[-1].num_blocks > self.swap_pool.num_free:
            return False  # until somebody gives swap space back; but all who could are waiting, too
        self.preempt(self.running[-1], plan)
    return True


# ---- blocks and lengths


def grows_at(remainder):
    def blocks_to_allocate(self, num_tokens):
        lengths = range(self.num_tokens + 1, self.num_tokens + num_tokens + 1)
        return sum(length % self.pool.block_size == remainder for length in lengths)

    return blocks_to_allocate


def frees_below_zero(self, block):
    self._ref_counts[block] -= 1
    if self._ref_counts[block] < 0:
        self._free_queue[block] = None


def never_copies(self):
    return None


def needs_one_block(self, block_size):
    return 1


def accepts_anything(self, *arguments):
    if arguments:  # Scheduler.add
        self._enqueue(arguments[0], GroupStatus.WAITING)


def stops_when_equal(self, token_id, logprobs):
    self.seq.token_ids.append(token_id)
    if len(self.seq.output_token_ids) == self.params.max_tokens:
        self.finish("length")
