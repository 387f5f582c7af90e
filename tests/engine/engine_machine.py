"""The whole engine under random programs: requests arrive, steps run or fail, prefixes are forgotten, requests aborted.

Two oracles watch it, and neither looks behind the public methods, so the machine runs on any scheduler, block pool,
block table and prefix cache: `machine(folder, Scheduler=Mine, Table=MyTable)`.

The slots. At every call of the attention kernel, every slot that it reads must hold exactly the right prefix: see
slot_oracle.py.

The texts. When all is done, every request must have what it gets from an engine that never shares, preempts or cuts
anything, and the dense model must agree that this is what the parameters ask for.
"""

import sys
import tempfile
from functools import lru_cache

from engine.checkpoints import VOCAB, Dense
from engine.guessing import speculate
from engine.slot_oracle import SlotOracle, WatchedLLM
from engine.tiers import HAS_FILES, give_tier
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minipage.engine.llm import LLM
from minipage.errors import InvalidRequestError
from minipage.memory import BlockPool, BlockTable, PrefixCache, blocks_needed
from minipage.memory.partial_cache import PartialPrefixCache
from minipage.sampling import SamplingParams
from minipage.scheduling import POLICIES, Scheduler


def machine(folder, kind=None, **parts):
    """An EngineMachine that runs the model in `folder`, with other parts, e.g. Scheduler=Mine, or preemption="swap"."""
    dense, plain = Dense(folder), LLM(folder, num_blocks=64, attention="reference")

    def texts(prompt, params):
        """[(token ids, finish reason), ...] when nothing is shared, short or cut."""
        outputs = plain.generate(list(prompt), params)[0].outputs
        for text in outputs if params.beam_width is None else ():
            explained = dense.explains(prompt, text.token_ids, params, text.index)
            assert explained, f"by the dense model, {text.token_ids} does not follow {prompt} with {params}"
        return [(text.token_ids, text.finish_reason) for text in outputs]

    oracles = {"dense_kv": staticmethod(lru_cache(10_000)(dense.kv)), "texts": staticmethod(lru_cache(10_000)(texts))}
    return type("EngineMachine", (kind or EngineMachine,), {"folder": folder} | oracles | parts)


BEAMS = [{"beam_width": width} for width in (1, 2, 3)]
requests = st.tuples(
    st.sampled_from([5, 9, 4, 7, 3, 1]),  # tokens of the prompt
    st.integers(0, 1),  # which prompt: those of one number begin alike
    st.sampled_from([8, 9, 5, 3, 1]),  # max_tokens
    st.sampled_from([{"temperature": 0}, {"seed": 0}, {"seed": 1}, {"seed": 0, "n": 2}, {"seed": 1, "n": 3}, *BEAMS]),
    st.booleans(),  # whether there are stop tokens
    st.sampled_from(["", "salt"]),
    st.integers(0, 1),  # priority
)


class EngineMachine(RuleBasedStateMachine):
    Scheduler, Pool, Table, Cache = Scheduler, BlockPool, BlockTable, PrefixCache
    Engine = WatchedLLM
    preemption = caching = None  # drawn for every program, unless given
    proposer = None  # of drafts, which half of the programs compute ahead
    file = None  # of a tier
    steps_until_it_fails = 1

    @initialize(
        block_size=st.sampled_from([2, 1, 3, 4]),
        num_slots=st.sampled_from([24, 16, 32, 12, 48, 8]),
        num_swap_blocks=st.sampled_from([16, 4, 1]),
        seats=st.sampled_from([6, 8, 4, 3, 1]),
        budget=st.sampled_from([16, 32, 8, 5, 1]),
        preemption=st.sampled_from(["recompute", "swap", "auto"]),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        first=st.lists(requests, min_size=4, max_size=6),
        num_drafts=st.sampled_from([0, 3, 1, 5]),
        unit=st.sampled_from([None, 1, 2]),
        num_slots_below=st.sampled_from([0, 30, 6, 2]),
        in_a_file=st.booleans(),
    )
    def start(
        self, block_size, num_slots, num_swap_blocks, seats, budget, preemption, caching, policy, first, num_drafts,
        unit, num_slots_below, in_a_file,
    ):  # fmt: skip
        self.oracle, self.policy = SlotOracle(self.dense_kv), policy
        pool, swap_pool = self.Pool(num_slots // block_size, block_size), self.Pool(num_swap_blocks, block_size)
        self.preemption = self.preemption or preemption
        self.caching = caching if self.caching is None else self.caching
        scheduler = self.Scheduler(
            pool,
            seats,
            budget,
            policy=POLICIES[policy],
            prefix_cache=self.make_cache(pool, unit) if self.caching else None,
            swap_pool=swap_pool if self.preemption != "recompute" else None,
            preemption=self.preemption,
        )
        self.llm = self.Engine(self.folder, self.oracle, scheduler=scheduler, block_table=self.Table)
        if num_slots_below and self.caching and self.llm.runner.is_alone:  # ranks have no tier
            self.file = tempfile.TemporaryDirectory() if in_a_file and HAS_FILES else None
            give_tier(self.llm, num_slots_below, f"{self.file.name}/kv" if self.file else None)
        if num_drafts and self.proposer:
            speculate(self.llm, self.proposer, num_drafts)
        self.asked = {}  # request id -> (prompt, params, its place in the order of the policy)
        self.seen = {}  # request id -> its last output
        self.arrive(first)

    def make_cache(self, pool, unit):
        """One that finds whole blocks only, or beginnings of blocks, in steps of `unit` tokens."""
        if self.Cache is not PrefixCache or unit is None or pool.block_size % unit:
            return self.Cache(pool)
        return PartialPrefixCache(pool, unit)

    def max_blocks(self, num_prompt, num_tokens, width):
        """What a request can grow to: `width` texts of so many tokens, which share the full blocks of the prompt."""
        size = self.llm.block_pool.block_size
        shared, longest = num_prompt // size, blocks_needed(num_tokens, size)
        return shared + width * (longest - shared)

    # ---- rules

    @rule(several=st.lists(requests, min_size=1, max_size=4))
    def arrive(self, several):
        for request in several:
            self.add(request)

    def add(self, request):
        length, which, max_tokens, way, stops, salt, priority = request
        prompt = tuple((11 * i * i + which) % VOCAB for i in range(length))
        stop_token_ids = tuple(range(0, VOCAB, 7)) if stops else ()
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, stop_token_ids=stop_token_ids, **way)
        pool, scheduler, width = self.llm.block_pool, self.llm.scheduler, params.beam_width or params.n
        fits_the_pool = self.max_blocks(length, length + max_tokens - 1, width) <= pool.num_blocks
        fits = fits_the_pool and width <= min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        what = f"{length} + {max_tokens} tokens, {width} wide, in {pool.num_blocks} blocks of {pool.block_size}"
        try:
            request_id = self.llm.add_request(prompt, params, priority=priority, cache_salt=salt)
        except InvalidRequestError as error:
            assert not fits, f"this fits, but was refused: {what}; {error}"
        else:
            assert fits, f"this can never fit, but was taken: {what}"
            arrival = len(self.asked)
            self.asked[request_id] = prompt, params, (priority, arrival) if self.policy == "priority" else arrival

    @rule(times=st.integers(1, 8))
    def steps(self, times):
        for _ in range(times):
            self.take(self.llm.step())

    @precondition(lambda self: self.llm.requests)
    @rule(
        place=st.sampled_from([0, 1, "schedule", "copy", "sample", "update"]),
        error=st.sampled_from([RuntimeError, KeyboardInterrupt]),
    )
    def step_fails(self, place, error):
        self.oracle.fail_at, self.oracle.error = place, error(f"it broke at {place!r}")
        try:
            for _ in range(self.steps_until_it_fails):
                if self.llm.requests:
                    self.take(self.llm.step())
        except (RuntimeError, KeyboardInterrupt) as raised:
            assert raised is self.oracle.error, f"another error came out: {raised!r}"
            self.oracle.failed()
        else:
            raise AssertionError("requests are unfinished, but a step computed nothing, or swallowed the error")
        finally:
            self.oracle.fail_at = None

    @precondition(lambda self: len(self.llm.requests) > 1)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.llm.requests)))
        assert self.llm.abort(request_id), f"{request_id} is unfinished, but abort does not know it"

    @precondition(lambda self: self.caching)
    @rule()
    def prefixes_are_forgotten(self):
        self.llm.reset_prefix_cache()
        assert not any(block in self.llm.scheduler.prefix_cache for block in range(self.llm.block_pool.num_blocks))

    @precondition(lambda self: self.file)
    @rule(data=st.data())
    def a_slot_is_damaged(self, data):
        rows = self.llm.offloading.store.rows
        rows[data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 99))] ^= 1

    # ---- checks

    def take(self, outputs):
        for output in outputs:
            before, name = self.seen.get(output.request_id), output.request_id
            assert before is None or not before.finished, f"{name} was told twice that it is finished"
            params = self.asked[name][1]
            for old, new in zip(before.outputs, output.outputs) if before and not params.beam_width else ():
                same = new.token_ids[: len(old.token_ids)] == old.token_ids
                assert same, f"{name} had the tokens {old.token_ids}, and now has {new.token_ids}"
            self.seen[name] = output

    @invariant()
    def everything_is_accounted_for(self):
        s = self.llm.scheduler
        s.check_integrity()
        queues = [[group.group_id for group in queue] for queue in (s.running, s.swapped, s.waiting)]
        queued, unfinished = [name for queue in queues for name in queue], sorted(self.llm.requests)
        assert sorted(queued) == unfinished, f"queued {queued}, unfinished {unfinished}"
        if self.policy == "fcfs" and self.preemption == "recompute":
            queues = [queued]  # nobody overtakes anybody
        for queue in queues:
            places = [self.asked[name][2] for name in queue]
            assert places == sorted(places), f"in a queue are {queue}; but their places in the order are {places}"
        num_running = sum(group.max_num_seqs for group in s.running)
        assert num_running <= s.max_num_seqs, f"{num_running} sequences run on {s.max_num_seqs} seats"
        for group in s.waiting:
            assert group.num_blocks == 0, f"{group} waits with blocks in its hands"

    def teardown(self):
        if sys.exc_info()[0] or not hasattr(self, "llm"):
            return  # the machine has found something already
        for _ in range(2000):
            if not self.llm.has_unfinished_requests():
                break
            self.take(self.llm.step())
            self.everything_is_accounted_for()
        else:
            raise AssertionError("the engine runs and runs, but its requests do not finish")
        for pool in filter(None, (self.llm.block_pool, self.llm.scheduler.swap_pool)):
            assert pool.num_free == pool.num_blocks, f"{pool.num_used} blocks leaked"
        for name, (prompt, params, _) in self.asked.items():
            expected = self.texts(prompt, params)
            found = [(text.token_ids, text.finish_reason) for text in self.seen[name].outputs]
            aborted = any(reason == "abort" for _, reason in found)
            if not aborted:
                assert found == expected, f"{name}: {params} made {prompt} go on with {found}; alone, with {expected}"
            elif params.beam_width is None:
                for (text, _), (whole, _) in zip(found, expected):
                    assert text == whole[: len(text)], f"{name} was aborted with {text}; alone, it says {whole}"
