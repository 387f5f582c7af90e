"""The whole engine under random programs: requests arrive, steps run or fail, requests are aborted.

Two oracles watch it, and neither looks behind the public methods, so the machine runs on any scheduler, block pool and
block table: `machine(folder, scheduler=MyScheduler, pool=MyPool, table=MyTable)`.

The slots. K and V of a token depend on all the tokens before it, so what a slot may hold is described exactly by a
prefix: the tokens up to and including its own. `SlotOracle` remembers the prefix that each step promises to write to
each slot, and at every call of the attention kernel follows the block tables as the kernel will: every slot it reads
must be of exactly the right prefix, and must really hold its K and V, which a dense forward pass computes anew. Slots
that no sequence owns are filled with NaN.

The texts. When all is done, every request must have the tokens that the dense model gives it, with no cache at all.
"""

import sys
from functools import lru_cache

import numpy as np
from engine.checkpoints import VOCAB, Dense
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minipage.attention import reference
from minipage.engine import LLM
from minipage.errors import InvalidRequestError
from minipage.memory import BlockPool, BlockTable
from minipage.sampling import SamplingParams
from minipage.scheduling import Scheduler


class SlotOracle:
    """Knows what every slot of the KV cache holds, and proves it at every call of the kernel."""

    def __init__(self, dense_kv):
        self.dense_kv = dense_kv
        self.prefixes = {}  # slot -> the tokens whose K and V it holds; not there: nothing to be trusted
        self.chunks = []  # (tokens, start, stop) of each sequence in the step being computed
        self.written = set()  # the slots that this step writes
        self.layer = 0
        self.fail_in_layer = None  # a number: raise `error` there
        self.error = None

    def begin(self, plan, pool):
        """A step is about to compute these chunks and write them to the slots that their block tables name."""
        self.layer, self.chunks, self.written = 0, [], set()
        for seq, start, num_tokens in plan.chunks:
            tokens, blocks = tuple(seq.token_ids), list(seq.block_table)
            assert start + num_tokens <= len(tokens), f"{seq} has no {start + num_tokens} tokens to compute"
            self.chunks.append((tokens, start, start + num_tokens))
            for i in range(start, start + num_tokens):
                block, offset = blocks[i // pool.block_size], i % pool.block_size
                slot = block * pool.block_size + offset
                assert pool.ref_count(block) == 1, f"{seq} writes to block {block}, which {pool.ref_count(block)} share"
                assert slot not in self.written, f"slot {slot} is written twice in one step, the second time by {seq}"
                self.written.add(slot)
                self.prefixes[slot] = tokens[: i + 1]

    def failed(self):
        """What the step was writing is half written."""
        for slot in self.written:
            self.prefixes.pop(slot, None)

    def attention(self, q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale):
        """Prove that the kernel will read what it should, then compute; or fail, if it is this layer's turn."""
        num_queries = np.diff(query_start_loc).tolist()
        assert num_queries == [stop - start for _, start, stop in self.chunks], f"{num_queries} queries: {self.chunks}"
        assert context_lens.tolist() == [stop for *_, stop in self.chunks], f"{context_lens} tokens: {self.chunks}"
        block_size = k_cache.shape[1]
        for (tokens, _, stop), table in zip(self.chunks, block_tables, strict=True):
            slots = [int(table[i // block_size]) * block_size + i % block_size for i in range(stop)]
            for i, slot in enumerate(slots):
                held, due = self.prefixes.get(slot), tokens[: i + 1]
                assert held == due, f"slot {slot} is read for the tokens {due}, but holds the K and V of {held}"
            for name, cache, expected in zip("KV", (k_cache, v_cache), self.dense_kv(tokens), strict=True):
                found = cache.reshape(-1, *cache.shape[2:])[slots]  # [stop, H, D]
                wrong = np.flatnonzero(~np.isclose(found, expected[self.layer, :stop], atol=1e-3).all(axis=(1, 2)))
                assert not len(wrong), f"layer {self.layer} of slot {slots[wrong[0]]} holds a {name} not of {tokens}"
        if self.layer == self.fail_in_layer:
            raise self.error
        self.layer += 1
        return reference.paged_attention(q, k_cache, v_cache, block_tables, context_lens, query_start_loc, scale)


class WatchedLLM(LLM):
    """The real engine, with an oracle at its elbow."""

    def __init__(self, model, oracle, **options):
        super().__init__(model, attention=oracle.attention, **options)
        self.oracle = oracle

    def copy(self, plan):
        size = self.block_pool.block_size
        for source, destination in plan.copies:
            for offset in range(size):
                if (held := self.oracle.prefixes.get(source * size + offset)) is not None:
                    self.oracle.prefixes[destination * size + offset] = held
        super().copy(plan)

    def forward(self, plan):
        num_tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        most = self.scheduler.max_num_batched_tokens
        assert num_tokens <= most, f"{num_tokens} tokens in one step, where {most} are allowed"
        self.oracle.begin(plan, self.block_pool)
        return super().forward(plan)

    def forget_free_blocks(self):
        """What a free block holds means nothing; NaN would show if anybody read it."""
        free = list(self.block_pool.free_queue)
        self.kv_cache.k[:, free] = self.kv_cache.v[:, free] = np.nan
        size = self.block_pool.block_size
        for slot in [slot for slot in self.oracle.prefixes if slot // size in free]:
            del self.oracle.prefixes[slot]


def machine(folder, scheduler=Scheduler, pool=BlockPool, table=BlockTable):
    """An EngineMachine that runs the model in `folder` on these three classes."""
    dense = Dense(folder)
    choices = {"folder": folder, "dense": dense, "dense_kv": staticmethod(lru_cache(maxsize=10_000)(dense.kv))}
    return type("EngineMachine", (EngineMachine,), choices | {"Scheduler": scheduler, "Pool": pool, "Table": table})


# (tokens of the prompt, where it starts, max_tokens, seed or -1 for greedy)
requests = st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(1, 9), st.integers(-1, 1))


class EngineMachine(RuleBasedStateMachine):
    @initialize(
        block_size=st.integers(1, 5),
        num_slots=st.integers(8, 26),
        seats=st.integers(1, 5),
        budget=st.integers(1, 14),
        first=st.lists(requests, min_size=1, max_size=5),
    )
    def start(self, block_size, num_slots, seats, budget, first):
        self.oracle = SlotOracle(self.dense_kv)
        pool = self.Pool(num_slots // block_size, block_size)
        scheduler = self.Scheduler(pool, max_num_seqs=seats, max_num_batched_tokens=budget)
        self.llm = WatchedLLM(self.folder, self.oracle, scheduler=scheduler, block_table=self.Table)
        self.llm.forget_free_blocks()
        self.asked = {}  # request id -> (prompt, params), in order of arrival
        self.seen = {}  # request id -> its last output
        for request in first:
            self.arrive(request)

    # ---- rules

    @rule(request=requests)
    def arrive(self, request):
        length, start, max_tokens, seed = request
        prompt = [(11 * i * i + start) % VOCAB for i in range(length)]  # many share a beginning, or all
        drawn = {"temperature": 1, "seed": seed} if seed >= 0 else {"temperature": 0}
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **drawn)
        pool = self.llm.block_pool
        fits = length + max_tokens - 1 <= pool.num_blocks * pool.block_size  # the last token needs no slot
        try:
            request_id = self.llm.add_request(prompt, params)
        except InvalidRequestError:
            assert not fits, f"{length} + {max_tokens} tokens fit {pool.num_blocks} blocks of {pool.block_size}"
        else:
            assert fits, f"{length} + {max_tokens} tokens can never fit {pool.num_blocks} blocks of {pool.block_size}"
            self.asked[request_id] = prompt, params

    @rule()
    def step(self):
        self.take(self.llm.step())

    @rule(times=st.integers(2, 8))
    def some_steps(self, times):
        for _ in range(times):
            self.take(self.llm.step())

    @precondition(lambda self: self.llm.requests)
    @rule(layer=st.integers(0, 1), error=st.sampled_from([RuntimeError, KeyboardInterrupt]))
    def step_fails(self, layer, error):
        self.oracle.fail_in_layer, self.oracle.error = layer, error("the kernel broke")
        try:
            self.take(self.llm.step())
        except (RuntimeError, KeyboardInterrupt) as raised:
            assert raised is self.oracle.error, f"another error came out: {raised!r}"
            self.oracle.failed()
        else:
            raise AssertionError("requests are unfinished, but the step computed nothing, or swallowed the error")
        finally:
            self.oracle.fail_in_layer = None

    @precondition(lambda self: len(self.llm.requests) > 2)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.llm.requests)))
        assert self.llm.abort(request_id), f"{request_id} is unfinished, but abort does not know it"

    # ---- checks

    def take(self, outputs):
        for output in outputs:
            before = self.seen.get(output.request_id)
            assert before is None or not before.finished, f"{output.request_id} was told twice that it is finished"
            if before:
                old, new = before.outputs[0].token_ids, output.outputs[0].token_ids
                assert new[: len(old)] == old, f"{output.request_id} had the tokens {old}, and now has {new}"
            self.seen[output.request_id] = output

    @invariant()
    def everything_is_accounted_for(self):
        scheduler = self.llm.scheduler
        scheduler.check_integrity()
        queued = [seq.seq_id for seq in [*scheduler.running, *scheduler.waiting]]
        assert sorted(queued) == sorted(self.llm.requests), f"queued {queued}, unfinished {sorted(self.llm.requests)}"
        arrivals = [request_id for request_id in self.asked if request_id in self.llm.requests]
        assert queued == arrivals, f"running, then waiting: {queued}; but they arrived as {arrivals}"
        seats = scheduler.max_num_seqs
        assert len(scheduler.running) <= seats, f"{len(scheduler.running)} sequences run on {seats} seats"
        assert all(len(seq.block_table) == 0 for seq in scheduler.waiting), "somebody waits with blocks in his hands"
        self.llm.forget_free_blocks()

    def teardown(self):
        if sys.exc_info()[0] or not hasattr(self, "llm"):
            return  # the machine has found something already
        for _ in range(2000):
            if not self.llm.has_unfinished_requests():
                break
            self.take(self.llm.step())
        else:
            raise AssertionError("the engine runs and runs, but its requests do not finish")
        pool = self.llm.block_pool
        assert pool.num_free == pool.num_blocks, f"{pool.num_used} blocks leaked"
        for request_id, (prompt, params) in self.asked.items():
            output = self.seen[request_id].outputs[0]
            if output.finish_reason != "abort":
                told = f"{request_id} ended by {output.finish_reason!r} with {len(output.token_ids)} tokens"
                assert (output.finish_reason, len(output.token_ids)) == ("length", params.max_tokens), told
            explained = self.dense.explains(prompt, output.token_ids, params)
            assert explained, f"by the dense model, {output.token_ids} does not follow {prompt} with {params}"
