"""Sharing, caching, preempting, swapping and chunking never change a token.

Every way of generating, under every combination of options, gives what the plain engine gives: no prefix caching, an
ample pool, whole prompts. Prefixes are shared in whole blocks, or down to a token.
"""

from itertools import product

import pytest

from minipage.engine.llm import LLM
from minipage.memory import blocks_needed
from minipage.sampling import SamplingParams

NUM_TOKENS = 9
WAYS = {
    "greedy": SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True),
    "n=4": SamplingParams(n=4, seed=3, max_tokens=NUM_TOKENS, ignore_eos=True),
    "beam 4": SamplingParams(beam_width=4, max_tokens=NUM_TOKENS),
}
POOLS = ["ample", "recompute", "swap", "auto"]


@pytest.fixture(scope="module")
def prompts(make_prompt):
    """Prompts that begin alike, or are the same, or have nothing in common."""
    first = make_prompt(0, 17)
    return [first, [*first[:9], 1, 2, 3], first, make_prompt(1, 3)]


def serve(llm, prompts, params):
    """All texts of all prompts, the number of preemptions, and whether anything was left behind."""
    ids = [llm.add_request(prompt, params) for prompt in prompts]
    done = {}
    while llm.has_unfinished_requests():
        done |= {output.request_id: output for output in llm.step() if output.finished}
        llm.scheduler.check_integrity()
    pools = [pool for pool in (llm.block_pool, llm.scheduler.swap_pool) if pool]
    assert all(pool.num_used == 0 for pool in pools), "blocks are in use, but no request is left"
    texts = [[completion.token_ids for completion in done[i].outputs] for i in ids]
    return texts, sum(done[i].metrics.num_preemptions for i in ids)


def max_blocks(prompt_length, width, block_size):
    """What a request can grow to: all its sequences at full length, sharing the full blocks of the prompt."""
    shared = prompt_length // block_size
    return shared + width * (blocks_needed(prompt_length + NUM_TOKENS - 1, block_size) - shared)


@pytest.fixture(scope="module")
def plain(tiny, prompts):
    return {name: serve(LLM(tiny, num_blocks=256), prompts, params)[0] for name, params in WAYS.items()}


def combinations():
    """All of them; by default every pair, such as this model with that pool, comes once at least. The rest is slow."""
    for pool, way in product(POOLS, WAYS):
        turn = POOLS.index(pool) + list(WAYS).index(way)
        default = ("gpt2", "llama")[turn % 2], (1, 4, 16)[turn % 3], "numpy"
        for others in product(("gpt2", "llama"), (1, 4, 16), ("numpy", "torch")):
            yield pytest.param(way, pool, *others, marks=() if others == default else pytest.mark.slow)


@pytest.mark.parametrize(("way", "pool", "tiny", "block_size", "arrays"), combinations(), indirect=["tiny"])
def test_no_combination_changes_a_token(tiny, prompts, plain, way, pool, block_size, arrays):
    params = WAYS[way]
    width = params.beam_width or params.n
    most = [max_blocks(len(prompt), width, block_size) for prompt in prompts]
    tight = max(most) + (block_size == 16)  # room for the largest alone; with large blocks, for the start of another
    options = (
        {"num_blocks": 512} if pool == "ample" else {"num_blocks": tight, "preemption": pool, "swap_space": "64KiB"}
    )
    num_preemptions = 0
    for caching, max_num_batched_tokens in [*product([False, True], [5, 2048]), ("parts", 5)]:
        llm = LLM(
            tiny,
            arrays=arrays,
            block_size=block_size,
            enable_prefix_caching=bool(caching),
            prefix_match_unit=1 if caching == "parts" else None,
            max_num_batched_tokens=max_num_batched_tokens,
            **options,
        )
        texts, preempted = serve(llm, prompts, params)
        assert texts == plain[way], f"other tokens with {caching=}, {max_num_batched_tokens=}"
        num_preemptions += preempted
    if pool != "ample":
        assert num_preemptions > 0, "the pool was too large to test this"


def test_a_prompt_is_computed_once_for_all_its_samples(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=64)
    computed = []
    forward = llm.forward
    llm.forward = lambda plan: computed.append(sum(chunk.num_tokens for chunk in plan.chunks)) or forward(plan)
    llm.generate(make_prompt(0, 10), SamplingParams(n=4, seed=0, max_tokens=3, ignore_eos=True))
    assert computed == [10, 4, 4]


def test_samples_share_the_prompt_and_copy_only_the_block_they_write_into(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=64)
    llm.add_request(make_prompt(0, 10), SamplingParams(n=4, seed=0, max_tokens=3, ignore_eos=True))
    llm.step()
    assert llm.block_pool.num_used == 3, "10 tokens take 3 blocks, whoever shares them"
    plan = llm.scheduler.schedule()
    assert len(plan.copies) == 3, "four write into one block: three get copies, the last writes in place"
    assert {copy.source for copy in plan.copies} == {2}
    assert llm.block_pool.num_used == 6


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_depends_on_its_seed_and_index_alone(tiny, make_prompt, seed):
    llm = LLM(tiny, num_blocks=64)
    params = SamplingParams(seed=seed, max_tokens=8, ignore_eos=True)
    one = llm.generate(make_prompt(0), params)[0].outputs[0]
    four = llm.generate(make_prompt(0), SamplingParams(n=4, seed=seed, max_tokens=8, ignore_eos=True))[0].outputs
    assert four[0].token_ids == one.token_ids
    assert len({tuple(text.token_ids) for text in four}) > 1
    assert [text.index for text in four] == [0, 1, 2, 3]


def test_a_prefix_is_computed_once_and_hits_are_counted_in_tokens(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=64, enable_prefix_caching=True)
    greedy = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    prompt = make_prompt(0, 12)
    first = llm.generate(prompt, greedy)[0].outputs[0].token_ids
    scheduler = llm.scheduler
    assert (scheduler.num_queried_tokens, scheduler.num_hit_tokens) == (12, 0)
    assert llm.generate(prompt, greedy)[0].outputs[0].token_ids == first
    assert (scheduler.num_queried_tokens, scheduler.num_hit_tokens) == (24, 8), "at least one token is left to compute"
    llm.generate([*prompt, *first], greedy)  # a conversation goes on: what was generated is found, too
    assert scheduler.num_hit_tokens == 8 + 16
    llm.reset_prefix_cache()
    llm.generate(prompt, greedy)
    assert scheduler.num_hit_tokens == 24


def test_a_prefix_is_not_shared_between_salts(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=64, enable_prefix_caching=True)
    for salt in ("Alice", "Bob", "Alice"):
        llm.add_request(make_prompt(0, 12), SamplingParams(max_tokens=1), cache_salt=salt)
        while llm.has_unfinished_requests():
            llm.step()
    assert llm.scheduler.num_hit_tokens == 8


def test_identical_prompts_in_flight_share_blocks_as_soon_as_they_are_full(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=64, enable_prefix_caching=True)
    greedy = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    for _ in range(3):
        llm.add_request(make_prompt(0, 10), greedy)
    llm.step()
    assert llm.block_pool.num_used == 2 + 3, "two full blocks for all three, and a part full one each"


def test_an_urgent_request_overtakes_those_that_wait(tiny, make_prompt):
    llm = LLM(tiny, num_blocks=64, max_num_seqs=1, policy="priority")
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    names = [llm.add_request(make_prompt(i), params, request_id=name, priority=priority)
             for i, (name, priority) in enumerate([("first", 5), ("late", 5), ("urgent", 0)])]  # fmt: skip
    order = []
    while llm.has_unfinished_requests():
        order += [output.request_id for output in llm.step() if output.finished]
    assert sorted(order) == sorted(names)
    assert order == ["urgent", "first", "late"]


def test_a_policy_of_ones_own_is_a_function(tiny, make_prompt):
    llm = LLM(tiny, num_blocks=64, max_num_seqs=1, policy=lambda group: (group.max_num_tokens, group.arrival))
    for name, length in (("long", 9), ("short", 2), ("middle", 5)):
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        llm.add_request(make_prompt(0), params, request_id=name)
    order = []
    while llm.has_unfinished_requests():
        order += [output.request_id for output in llm.step() if output.finished]
    assert order == ["short", "middle", "long"]
