"""Prefixes that end inside a block: its other owner is neither read nor written over, and no token changes.

The random histories of test_engine_machine.py have them as one of their dimensions, and so have the combinations of
test_combinations.py; here they are in all of the programs, and beside what else there is.
"""

from functools import partial

import pytest
from engine.checkpoints import Dense
from engine.engine_machine import machine
from engine.slot_oracle import SlotOracle, WatchedLLM
from engine.test_combinations import WAYS, serve
from engine.test_engine_machine import UNTIL_IT_FAILS, programs
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.attention import cpu, loops, reference
from minipage.engine import partial_hits
from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError
from minipage.memory import BlockCopy, BlockPool
from minipage.memory.partial_cache import PartialPrefixCache
from minipage.sampling import SamplingParams
from minipage.scheduling import Admission, GroupStatus, Scheduler

slow = pytest.mark.slow
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
PARTS = {"enable_prefix_caching": True, "prefix_match_unit": 1}


@pytest.fixture(scope="module")
def prompts(make_prompt):
    """Each goes on otherwise inside a block of 16, the second even while the first is being written."""
    first = make_prompt(0, 21)
    return [first, [*first[:19], 1, 2, 3], [*first[:9], 4, *first[10:]], first, first[:20]]


@pytest.fixture(scope="module")
def plain(tiny, prompts):
    return {name: serve(LLM(tiny, num_blocks=256), prompts, params)[0] for name, params in WAYS.items()}


# ---- what is read and written


@pytest.mark.parametrize("kernel", [reference, loops, cpu], ids=lambda kernel: kernel.__name__.split(".")[-1])
@pytest.mark.parametrize(
    ("block_size", "unit"), [(16, 1), pytest.param(16, 4, marks=slow), pytest.param(4, 2, marks=slow)]
)
def test_no_kernel_reads_a_slot_beyond_a_hit(tiny, prompts, plain, kernel, block_size, unit):
    oracle = SlotOracle(Dense(tiny).kv, kernel.paged_attention)
    options = {"block_size": block_size, "num_blocks": 64, "max_num_batched_tokens": 8, "max_num_seqs": 5}
    llm = WatchedLLM(tiny, oracle, enable_prefix_caching=True, prefix_match_unit=unit, **options)
    num_copies, copy = [], llm.copy
    llm.copy = lambda plan: num_copies.append(len(plan.copies)) or copy(plan)
    for name in ("greedy", "n=4", "beam 4") if kernel is cpu else ("n=4",):
        llm.reset_prefix_cache()
        for i, prompt in enumerate(prompts):
            assert serve(llm, [prompt], WAYS[name])[0] == plain[name][i : i + 1]
        assert serve(llm, prompts, WAYS[name])[0] == plain[name], "all at once, while they write"
    assert sum(num_copies) > 0


def test_random_histories_read_what_they_should_and_say_what_they_say_alone(tiny):
    run(machine(tiny, caching=True, Cache=staticmethod(partial(PartialPrefixCache, prefix_match_unit=1))),
        settings=programs(8, num_steps=15))  # fmt: skip


@slow
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
def test_longer_random_histories(tiny, preemption):
    cache = staticmethod(partial(PartialPrefixCache, prefix_match_unit=1))
    run(machine(tiny, caching=True, Cache=cache, preemption=preemption), settings=programs(1500, num_steps=40))


class CopiesNothing(PartialPrefixCache):
    def adopt(self, table, blocks, block_hashes):
        super().adopt(table, blocks, block_hashes)
        self.copies.clear()


class WritesIntoThePartItself(PartialPrefixCache):
    def adopt(self, table, blocks, block_hashes):
        super().adopt(table, blocks, block_hashes)
        for source, destination in self.copies:
            if self.pool.ref_count(source) == 0:
                self.pool.revive(source)
                self.pool.free(destination)
                table.blocks[-1] = source


class PublishesAUnitThatIsNotWritten(PartialPrefixCache):
    def _publish_parts(self, block, parent, token_ids):
        super()._publish_parts(block, parent, [*token_ids, 0][: self.pool.block_size - 1])


@pytest.mark.parametrize(
    ("mutant", "words"),
    [
        (CopiesNothing, "is read for the tokens"),
        (WritesIntoThePartItself, "others can find as a prefix|which \\d share"),
        (PublishesAUnitThatIsNotWritten, "is read for the tokens|others can find as a prefix"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_histories_catch_it(tiny, mutant, words):
    cache = staticmethod(partial(mutant, prefix_match_unit=1))
    with pytest.raises(Exception, match=words):
        run(machine(tiny, caching=True, Cache=cache), settings=UNTIL_IT_FAILS)


def test_a_copy_of_a_copy_is_one_of_the_original():
    copies = [BlockCopy(3, 7), BlockCopy(7, 8), BlockCopy(8, 9), BlockCopy(1, 3)]
    assert partial_hits.at_once(copies) == [(3, 7), (3, 8), (3, 9), (1, 3)]


def test_samples_that_find_all_they_have_in_common_fork_what_is_still_to_be_copied(tiny, make_prompt):
    prompt = make_prompt(0, 13)
    params = SamplingParams(n=3, seed=3, max_tokens=9, ignore_eos=True)
    expected = [text.token_ids for text in LLM(tiny, num_blocks=64).generate(prompt, params)[0].outputs]
    llm = WatchedLLM(tiny, SlotOracle(Dense(tiny).kv), block_size=16, num_blocks=16, **PARTS)
    llm.add_request(prompt, params)
    llm.step()
    [group] = llm.scheduler.running
    plan = llm.scheduler.schedule()  # as if the pool were dry
    llm.scheduler.preempt(group, plan)
    llm.scheduler.recompute_all()
    plan = llm.schedule()
    assert [chunk.start for chunk in plan.chunks] == [13] * 3, "all 13 tokens were found"
    assert len({copy.source for copy in plan.copies}) == 1, "of the block in the cache, not of its copy"
    assert len({copy.destination for copy in plan.copies}) == 3
    llm.scheduler.recompute_all()  # that plan will not run
    while llm.has_unfinished_requests():
        outputs = llm.step()
    assert [text.token_ids for text in outputs[0].outputs] == expected


def test_copies_of_a_step_that_failed_are_not_made_in_the_next(tiny, make_prompt):
    def failing(group):
        if fails:
            raise RuntimeError("a policy that fails")
        return group.arrival

    fails = False
    llm = LLM(tiny, block_size=16, num_blocks=16, policy=failing, **PARTS)
    first = make_prompt(0, 13)
    expected = llm.generate(first, GREEDY)[0].outputs[0].token_ids
    llm.add_request(first, GREEDY)
    fails = True
    with pytest.raises(RuntimeError):
        llm.step()
    fails = False
    assert not llm.scheduler.running
    llm.scheduler.prefix_cache.copies.append(BlockCopy(0, 5))  # as if it had failed a little later
    assert llm.schedule().copies != [BlockCopy(0, 5)]
    llm.scheduler.recompute_all()
    while llm.has_unfinished_requests():
        outputs = llm.step()
    assert outputs[0].outputs[0].token_ids == expected


# ---- what is found


@pytest.mark.parametrize(("unit", "hits"), [(None, 16), (8, 24), (4, 28), (2, 30), (1, 30)])
def test_a_prompt_is_found_up_to_its_last_token_in_steps_of_the_unit(tiny, make_prompt, unit, hits):
    llm = LLM(tiny, block_size=16, num_blocks=16, enable_prefix_caching=True, prefix_match_unit=unit)
    prompt = make_prompt(0, 31)
    for _ in range(2):
        output = llm.generate(prompt, GREEDY)[0]
    assert llm.scheduler.num_hit_tokens == output.num_cached_tokens == hits


def test_a_conversation_goes_on_where_it_ended(tiny, make_prompt):
    llm = LLM(tiny, block_size=16, num_blocks=16, **PARTS)
    text = make_prompt(0, 10)
    for _ in range(3):
        text = [*text, *llm.generate(text, GREEDY)[0].outputs[0].token_ids, 7]
    lengths = [10, 17, 24]
    # Of each answer all but the last token was written; whoever asks again has that token to compute, and the new one.
    assert llm.scheduler.num_hit_tokens == sum(length + 5 for length in lengths[:2])


def test_one_changed_word_costs_what_comes_after_it(tiny, make_prompt):
    llm = LLM(tiny, block_size=16, num_blocks=16, **PARTS)
    text = make_prompt(0, 40)
    llm.generate(text, GREEDY)
    for place in (5, 20, 39):
        before = llm.scheduler.num_hit_tokens
        llm.generate([*text[:place], 1 + text[place], *text[place + 1 :]], GREEDY)
        assert llm.scheduler.num_hit_tokens - before == place


def test_what_was_swapped_in_can_be_found_again(tiny, make_prompt):
    llm = LLM(tiny, block_size=16, num_blocks=3, preemption="swap", swap_space="64KiB", **PARTS)
    prompts = [make_prompt(i, 10) for i in range(3)]
    texts, num_preemptions = serve(llm, prompts, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    assert num_preemptions > 0
    last = [*prompts[-1], *texts[-1][0]]
    assert llm.generate([*last, 1], GREEDY)[0].num_cached_tokens == len(last) - 1


def test_with_drafts(tiny, prompts, plain):
    speculative_config = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1}
    llm = LLM(tiny, block_size=16, num_blocks=64, speculative_config=speculative_config, **PARTS)
    for _ in range(2):
        for way in ("greedy", "n=4"):
            assert serve(llm, prompts, WAYS[way])[0] == plain[way]
    assert llm.stats()["vllm:spec_decode_num_draft_tokens"] > 0
    assert llm.scheduler.num_hit_tokens > 0


@pytest.mark.parametrize(
    "options",
    [{"num_blocks": 64}, {"num_blocks": 9, "preemption": "swap", "swap_space": "1MiB"}],
    ids=["ample", "swap"],
)
def test_with_steps_that_overlap(tiny, prompts, plain, options):
    llm = LLM(tiny, block_size=16, async_scheduling=True, max_num_batched_tokens=9, **options, **PARTS)
    for _ in range(2):
        for way in ("greedy", "n=4", "beam 4"):
            assert serve(llm, prompts, WAYS[way])[0] == plain[way]
    assert llm.scheduler.num_hit_tokens > 0


class AdmitsInItsOwnWords(Scheduler):
    def _admit(self, plan, budget):
        for group in list(self.waiting):
            prefix = self._find_prefix(group)
            if budget > 0 and self.admission(group, prefix.blocks) is Admission.NOW:
                self.waiting.remove(group)
                self._enqueue(group, GroupStatus.RUNNING)
                self.prefix_cache.adopt(group.leader.block_table, *prefix)
                group.fork_followers()
                budget -= self._give_slots(group.next_chunks(budget), plan)


def test_a_scheduler_of_ones_own_need_not_know_of_it(tiny, prompts, plain):
    pool = BlockPool(64, 16)
    scheduler = AdmitsInItsOwnWords(pool, 4, 32, prefix_cache=PartialPrefixCache(pool, 1))
    llm = WatchedLLM(tiny, SlotOracle(Dense(tiny).kv), scheduler=scheduler)
    copies, copy = [], llm.copy
    llm.copy = lambda plan: copies.extend(plan.copies) or copy(plan)
    for _ in range(2):
        assert serve(llm, prompts, WAYS["greedy"])[0] == plain["greedy"]
    assert len(copies) >= len(prompts)


# ---- what is refused


@pytest.mark.parametrize("unit", [0, 3, 32, "4"])
def test_a_unit_that_does_not_divide_the_block_size_is_refused(tiny, unit):
    with pytest.raises(ConfigurationError, match="prefix_match_unit"):
        LLM(tiny, num_blocks=8, enable_prefix_caching=True, prefix_match_unit=unit)


def test_a_unit_without_a_prefix_cache_is_refused(tiny):
    with pytest.raises(ConfigurationError, match="no effect without enable_prefix_caching"):
        LLM(tiny, num_blocks=8, prefix_match_unit=4)


def test_a_unit_beside_a_scheduler_that_is_ready_is_refused(tiny):
    with pytest.raises(ConfigurationError, match="prefix_match_unit would have no effect"):
        LLM(tiny, scheduler=Scheduler(BlockPool(8)), prefix_match_unit=4)


@pytest.mark.parametrize("tiny", ["mistral", "hybrid"], indirect=True)
def test_windows_are_refused_in_a_sentence(tiny):
    with pytest.raises(ConfigurationError, match="sliding windows"):
        LLM(tiny, num_blocks=64, block_size=4, **PARTS)
