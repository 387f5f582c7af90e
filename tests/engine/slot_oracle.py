"""An oracle that knows what every slot of the KV cache holds, and an engine that lets it watch.

K and V of a token depend on all the tokens before it, so what a slot may hold is described exactly by a prefix: the
tokens up to and including its own, and the salt that says who may share them. `SlotOracle` remembers the prefix that
each step promises to write to each slot, and carries it along when blocks are swapped and copied. At every call of the
attention kernel it follows the block tables as the kernel will: every slot that is read must be of exactly the right
prefix, and must really hold its K and V, which a dense forward pass computes anew. Slots that no sequence owns, and
that cannot be found as a prefix either, are filled with NaN. Where layers have tables and windows of their own
(memory/kv_groups.py), a slot also belongs to one group of layers, and what lies behind the window must not be read: so
the kernel is given caches that are NaN everywhere else than in the slots that it should read.
"""

from itertools import product

import numpy as np

from minipage.attention import reference
from minipage.engine.llm import LLM


class SlotOracle:
    """Knows what every slot of the KV cache holds, and proves it at every call of the kernel."""

    def __init__(self, dense_kv, kernel=None):
        self.dense_kv, self.kernel = dense_kv, kernel
        self.groups = None  # of the engine's layers
        # slot -> (group of layers, salt, the tokens whose K and V it holds); not there: nothing to be trusted
        self.prefixes = {}
        self.swapped = {}  # the same for the slots of the swap pool
        self.chunks = []  # (salt, tokens, start, stop) of each sequence in the step being computed
        self.half_written = set()  # the slots that this step is writing
        self.layer = 0
        self.fail_at = self.error = None  # a phase, or the number of a layer: raise `error` there

    def fail(self, place):
        if place == self.fail_at:
            raise self.error

    def move(self, copies, source, destination, block_size):
        """Blocks are copied, all at once, from one memory to another or within one; each is a {slot: prefix}."""
        slots = [(old * block_size + i, new * block_size + i) for old, new in copies for i in range(block_size)]
        moved = {new: source.get(old) for old, new in slots}
        destination.update(moved)

    def begin(self, plan, pool, prefix_cache, writes=True):
        """A step is about to compute these chunks and write them to the slots that their block tables name; or, without
        `writes`, it will be at some later time."""
        self.layer, self.chunks, self.half_written = 0, [], set()
        for chunk in plan.chunks:
            group, seq, start, num_tokens = chunk.group, chunk.seq, chunk.start, chunk.num_tokens
            salt = group.cache_salt
            tokens = (*seq.token_ids[:start], *chunk.token_ids)  # of which the last may be drafts
            assert start + num_tokens <= len(tokens), f"{seq} has no {start + num_tokens} tokens to compute"
            self.chunks.append((salt, tokens, start, start + num_tokens))
            tables = [list(table) for table in getattr(seq.block_table, "parts", [seq.block_table])]
            for g, i in product(range(len(tables)), range(start, start + num_tokens)):
                block, offset = tables[g][i // pool.block_size], i % pool.block_size
                slot = block * pool.block_size + offset
                assert pool.ref_count(block) == 1, f"{seq} writes to block {block}, which {pool.ref_count(block)} share"
                # All of a block can be found or nothing, unless the cache says how much; beyond that its owner writes.
                num_findable = getattr(prefix_cache, "num_findable", lambda block: pool.block_size)
                known = prefix_cache is not None and block in prefix_cache
                assert not known or offset >= num_findable(block), (
                    f"{seq} writes to block {block}, which others can find as a prefix: a block has to be forgotten "
                    "when it is reused, and published only once it is written"
                )
                assert slot not in self.half_written, f"slot {slot} is written twice in one step, now by {seq}"
                self.half_written.add(slot)
                if writes:
                    self.prefixes[slot] = g, salt, tokens[: i + 1]

    def failed(self):
        """What the step was writing cannot be trusted."""
        for slot in self.half_written:
            self.prefixes.pop(slot, None)
        self.half_written = set()  # the next step may fail before it writes, and these slots hold other things by then

    def attention(self, q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale, window=None):
        """Prove that the kernel will read what it should, then compute; or fail, if it is this layer's turn."""
        num_queries = np.diff(query_start_loc).tolist()
        due = [stop - start for _, _, start, stop in self.chunks]
        assert num_queries == due, f"{num_queries} queries, where {due} tokens are computed"
        due = [stop for *_, stop in self.chunks]
        assert context_lens.tolist() == due, f"{context_lens} tokens are attended to, where {due} are there"
        block_size, group = k_cache.shape[1], self.groups.layers[self.layer].group if self.groups else 0
        only = [np.full_like(cache, np.nan) for cache in (k_cache, v_cache)]  # what is read, and NaN
        for (salt, tokens, start, stop), table in zip(self.chunks, block_tables, strict=True):
            first = 0 if window is None else max(0, start + 1 - window)  # of the tokens that the first query sees
            slots = [int(table[i // block_size]) * block_size + i % block_size for i in range(first, stop)]
            for i, slot in enumerate(slots, first):
                held = self.prefixes.get(slot)
                told = f"slot {slot} is read for the tokens {tokens[: i + 1]} of salt {salt!r}, but holds"
                assert held is not None, f"{told} nothing that can be trusted"
                assert held[0] == group, f"{told} what the layers of group {held[0]} wrote, and not those of {group}"
                assert held[1:] == (salt, tokens[: i + 1]), f"{told} the K and V of {held[2]} of salt {held[1]!r}"
            for name, cache, own, expected in zip("KV", (k_cache, v_cache), only, self.dense_kv(tokens), strict=True):
                found = cache.reshape(-1, *cache.shape[2:])[slots]  # [stop - first, H, D]
                own.reshape(-1, *cache.shape[2:])[slots] = found  # [stop - first, H, D]
                assert np.isfinite(found).all(), (
                    f"in layer {self.layer}, a {name} of {tokens} is no number: it was computed from a slot that "
                    "nobody wrote"
                )
                wrong = np.flatnonzero(~np.isclose(found, expected[self.layer, first:stop], atol=1e-3).all(axis=(1, 2)))
                assert not len(wrong), f"layer {self.layer} of slot {slots[wrong[0]]} holds a {name} not of {tokens}"
        self.fail(self.layer)
        self.layer += 1
        options = {} if window is None else {"window": window}
        kernel = self.kernel or reference.paged_attention
        return kernel(q, *only, block_tables, context_lens, query_start_loc, scale, **options)


class WatchedLLM(LLM):
    """The real engine, with an oracle at its elbow."""

    def __init__(self, model, oracle, **options):
        super().__init__(model, attention=oracle.attention, **options)
        self.oracle = oracle
        oracle.groups = self.runner.kv_groups

    def schedule(self):
        self.forget_free_blocks()
        plan = super().schedule()
        if not plan.chunks and self.scheduler.has_unfinished:
            self.scheduler.check_integrity()  # a leak would explain it
            raise AssertionError("requests are unfinished, but a step computes nothing: everybody waits for somebody")
        self.oracle.fail("schedule")
        return plan

    def copy(self, plan):
        here, there, size = self.oracle.prefixes, self.oracle.swapped, self.block_pool.block_size
        self.oracle.move(plan.swap_out, here, there, size)
        self.oracle.move(plan.swap_in, there, here, size)
        self.oracle.move(plan.copies, here, here, size)
        self.oracle.fail("copy")
        super().copy(plan)

    def forward(self, plan):
        num_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        most = self.scheduler.max_num_batched_tokens
        assert num_tokens <= most, f"{num_tokens} tokens in one step, where {most} are allowed"
        self.oracle.begin(plan, self.block_pool, self.scheduler.prefix_cache)
        logits = super().forward(plan)
        self.oracle.half_written = set()
        return logits

    def sample(self, plan, logits):
        assert np.isfinite(logits).all(), "the logits are no numbers: they were computed from a slot that nobody wrote"
        tokens = super().sample(plan, logits)
        self.oracle.fail("sample")
        return tokens

    def update(self, plan, tokens):
        super().update(plan, tokens)
        self.oracle.fail("update")

    def forget_free_blocks(self):
        """What a free block holds means nothing, unless it can be found as a prefix; NaN shows if anybody reads it."""
        found = self.scheduler.prefix_cache if self.scheduler.prefix_cache is not None else ()
        free = {block for block in self.block_pool.free_queue if block not in found}
        forget(self.kv_cache, free, self.oracle.prefixes)
        if self.swap_cache is not None:
            forget(self.swap_cache, set(self.scheduler.swap_pool.free_queue), self.oracle.swapped)


def forget(cache, blocks, prefixes):
    cache.k[:, list(blocks)] = cache.v[:, list(blocks)] = np.nan
    block_size = cache.k.shape[2]
    for slot in [slot for slot in prefixes if slot // block_size in blocks]:
        del prefixes[slot]
