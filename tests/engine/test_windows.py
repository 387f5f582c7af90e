"""Models with sliding windows, in all layers or in some: what lies behind a window is given back, and missed by nobody.

The oracles: transformers' own model for what is said, a dense forward pass for every way to compute it, and the slot
oracle (slot_oracle.py) for what is read: its caches are NaN wherever a kernel has no business.
"""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from engine.checkpoints import CONTEXT, SAVE, VOCAB, Dense, with_windows
from engine.engine_machine import EngineMachine, machine
from engine.guessing import Knowing, speculate
from engine.slot_oracle import SlotOracle, WatchedLLM
from engine.test_combinations import NUM_TOKENS, POOLS, WAYS, serve
from engine.test_engine_machine import programs
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.attention import cpu, loops, reference
from minipage.engine.llm import LLM
from minipage.memory import BlockTable, blocks_needed
from minipage.memory.kv_group_cache import GroupPrefixCache
from minipage.memory.kv_groups import EVERYTHING, KVGroups
from minipage.sampling import SamplingParams

slow = pytest.mark.slow
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def prompts(make_prompt):
    """Prompts that begin alike, or are the same, or have nothing in common."""
    first = make_prompt(0, 30)
    return [first, [*first[:22], 1, 2, 3], first, make_prompt(1, 3)]


@pytest.fixture(scope="module")
def plain(tiny, prompts):
    """The texts of an engine with one table for all layers, which gives nothing back."""
    own = type("OwnTable", (BlockTable,), {})
    return {name: serve(LLM(tiny, num_blocks=256, block_table=own), prompts, p)[0] for name, p in WAYS.items()}


# ---- what is said


@pytest.mark.parametrize("arrays", ["numpy", pytest.param("torch", marks=slow)])
@pytest.mark.parametrize("kind", ["mistral", "hybrid"])
def test_64_greedy_tokens_and_their_logits_are_those_of_transformers_far_beyond_the_window(kind, arrays, tmp_path):
    theirs = SAVE[kind](tmp_path, max_position_embeddings=512, sliding_window=20, eos_token_id=None)
    prompt = [1 + (5 * i * i + 3 * i) % (VOCAB - 2) for i in range(150)]
    expected = theirs.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=64, min_new_tokens=64, pad_token_id=0,
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
    )[0, len(prompt) :].tolist()  # fmt: skip
    assert len(set(expected)) > 20, "this test compares a text of hardly any different tokens"
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=0, prompt_logprobs=0)
    with torch.no_grad():
        logprobs = theirs(torch.tensor([prompt + expected])).logits[0].log_softmax(-1).numpy()  # [T, V]
    for budget in 2048, 11:
        llm = LLM(tmp_path, num_blocks=200, block_size=8, max_num_batched_tokens=budget, arrays=arrays)
        output = llm.generate(prompt, params)[0]
        assert output.outputs[0].token_ids == expected, budget
        said = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        found = [each[token].logprob for each, token in zip(said, [*prompt[1:], *expected], strict=True)]
        rows = np.arange(len(found))
        np.testing.assert_allclose(found, logprobs[rows, [*prompt[1:], *expected]], atol=1e-3)


@pytest.mark.parametrize("tiny", [pytest.param("mistral", marks=slow), "hybrid"], indirect=True)
@pytest.mark.parametrize("block_size", [pytest.param(1, marks=slow), 4, pytest.param(16, marks=slow)])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("way", [pytest.param("greedy", marks=slow), "n=4", pytest.param("beam 4", marks=slow)])
def test_no_combination_changes_a_token(tiny, prompts, plain, way, pool, block_size):
    params = WAYS[way]
    width = params.beam_width or params.n
    num_preemptions, times = 0, 1 if pool == "ample" else 3
    for caching, budget in product([False, True], [5, 2048]):
        groups = KVGroups.of(*Dense(tiny).model.kv[::3])
        most = max(max_blocks(groups, len(p), len(p) + NUM_TOKENS - 1, width, block_size, budget) for p in prompts)
        options = {"num_blocks": 512} if pool == "ample" else {"num_blocks": most, "preemption": pool}
        llm = LLM(
            tiny, block_size=block_size, enable_prefix_caching=caching, max_num_batched_tokens=budget,
            swap_space="64KiB", **options,
        )  # fmt: skip
        texts, preempted = serve(llm, prompts * times, params)
        assert texts == plain[way] * times, f"other tokens with {caching=}, {budget=}"
        num_preemptions += preempted
    if pool != "ample":
        assert num_preemptions > 0, "the pool was too large to test this"


def max_blocks(groups, num_prompt, num_tokens, width, block_size, budget):
    """What a request can grow to. Behind a window lies nothing, and nothing is shared for good."""
    shared, longest = num_prompt // block_size, blocks_needed(num_tokens, block_size)
    most = 0
    for window in groups.windows:
        if window == EVERYTHING:
            most += shared + width * (longest - shared)
        else:
            seen = window - 1 + budget  # tokens that are in reach, beginning anywhere in a block
            touched = max((start + seen - 1) // block_size + 1 for start in range(block_size))
            most += width * min(longest, touched)
    return most


# ---- what is read


@pytest.mark.parametrize("tiny", [pytest.param("mistral", marks=slow), "hybrid"], indirect=True)
@pytest.mark.parametrize("kernel", [reference, loops, cpu], ids=lambda kernel: kernel.__name__.split(".")[-1])
@pytest.mark.parametrize("budget", [7, pytest.param(2048, marks=slow)])
def test_no_kernel_reads_a_slot_behind_a_window_or_of_other_layers(tiny, prompts, plain, kernel, budget):
    oracle = SlotOracle(Dense(tiny).kv, kernel.paged_attention)
    options = {"block_size": 4, "num_blocks": 128, "enable_prefix_caching": True, "max_num_batched_tokens": budget}
    llm = WatchedLLM(tiny, oracle, **options)
    assert len(llm.runner.kv_groups.windows) in (1, 3)
    for name in ("greedy", "n=4"):
        assert serve(llm, prompts, WAYS[name])[0] == plain[name]


class WindowedMachine(EngineMachine):
    """Random histories of a model with windows; see engine_machine.py."""

    def max_blocks(self, num_prompt, num_tokens, width):
        budget = self.llm.scheduler.max_num_batched_tokens
        return max_blocks(self.groups, num_prompt, num_tokens, width, self.llm.block_pool.block_size, budget)


def windowed_machine(folder, **parts):
    groups = KVGroups.of(*Dense(folder).model.kv[::3])
    cache = partial(GroupPrefixCache, windows=groups.windows)
    made = machine(folder, groups=groups, Cache=staticmethod(cache), **parts)
    return type("WindowedMachine", (WindowedMachine,), {k: v for k, v in vars(made).items() if k[:2] != "__"})


@with_windows
def test_random_histories_read_what_they_should_and_say_what_they_say_alone(tiny):
    run(windowed_machine(tiny), settings=programs(6, num_steps=12))


@slow
@with_windows
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
def test_longer_random_histories(tiny, preemption, caching):
    run(windowed_machine(tiny, preemption=preemption, caching=caching), settings=programs(500, num_steps=30))


# ---- what is given back


def test_blocks_in_use_stay_flat_while_the_text_grows_ten_times(tmp_path):
    SAVE["mistral"](tmp_path, max_position_embeddings=1024, sliding_window=20)
    llm = LLM(tmp_path, block_size=4, num_blocks=140)
    llm.add_request([1] * 50, SamplingParams(temperature=0, max_tokens=500, ignore_eos=True))
    llm.step()
    used = []
    while llm.has_unfinished_requests():
        llm.step()
        used.append(llm.block_pool.num_used)
    assert set(used[1:-1]) <= {5, 6}, "20 tokens touch at most 6 blocks of 4"


def test_of_a_hybrid_only_the_full_layers_keep_their_blocks(tmp_path):
    SAVE["hybrid"](tmp_path, max_position_embeddings=512)
    llm = LLM(tmp_path, block_size=4, num_blocks=200)
    llm.add_request([1] * 100, SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    while llm.has_unfinished_requests():
        llm.step()
        table = next((seq.block_table for group in llm.scheduler.running for seq in group.sequences), None)
        if table and table.num_tokens > 101:
            full, *windowed = table.parts
            assert len(full.blocks) == blocks_needed(table.num_tokens, 4)
            assert all(len(part.blocks) <= 3 for part in windowed), "6 tokens touch at most 3 blocks of 4"
            assert llm.block_pool.num_used == sum(len(part.blocks) for part in table.parts)


@with_windows
def test_a_prefix_is_found_even_if_what_lies_behind_its_window_is_gone(tiny, make_prompt):
    llm = LLM(tiny, block_size=4, num_blocks=40, enable_prefix_caching=True)
    prompt, is_hybrid = make_prompt(0, 33), len(llm.runner.kv_groups.windows) > 1
    first = llm.generate(prompt, GREEDY)
    cache = llm.scheduler.prefix_cache
    found = cache.find(prompt)
    assert len(found.block_hashes) == 1 + 8
    assert len(found.blocks) == (8 + 2 * 2 if is_hybrid else 2), "5 tokens before token 32 lie in 2 blocks of 4"
    if not is_hybrid:
        for block in range(40):
            if block not in found.blocks:
                cache.forget(block)
        assert cache.find(prompt) == found
    assert llm.generate(prompt, GREEDY)[0].outputs[0].token_ids == first[0].outputs[0].token_ids
    assert llm.scheduler.num_hit_tokens == 32
    cache.forget(found.blocks[-1])  # a group of layers misses the last block: the prefix ends before it
    assert len(cache.find(prompt).block_hashes) < 1 + 8


def test_a_prompt_longer_than_the_pool_is_taken_if_the_window_fits(tmp_path):
    SAVE["mistral"](tmp_path, max_position_embeddings=1024)
    llm = LLM(tmp_path, block_size=4, num_blocks=8, max_num_batched_tokens=16)
    output = llm.generate([1] * 300, SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))[0]
    assert len(output.outputs[0].token_ids) == 1024 - 300, "the pool does not limit the text"


@with_windows
def test_drafts_that_were_wrong_are_taken_back_from_every_table(tiny, make_prompt):
    prompt = make_prompt(0, 20)
    expected = Dense(tiny).greedy(prompt, 30)
    for caching in False, True:
        llm = LLM(tiny, block_size=4, num_blocks=64, enable_prefix_caching=caching)
        speculate(llm, Knowing([prompt + expected], lambda place: place % 3 == 2), num_tokens=3)
        for _ in range(2):
            llm.add_request(prompt, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
            while llm.has_unfinished_requests():
                outputs = llm.step()
                llm.scheduler.check_integrity()
            assert outputs[0].outputs[0].token_ids == expected
        stats = llm.stats()
        assert stats["vllm:spec_decode_num_draft_tokens"] > stats["vllm:spec_decode_num_accepted_tokens"]


def test_layers_of_each_kind_are_cut_into_groups_of_one_size():
    groups = KVGroups.of(7, (8, 8, None, 8, 8, None, 8))
    assert groups.windows == (8, 8, 8, EVERYTHING) and groups.num_layers == 2
    places = [layer[:2] for layer in groups.layers]
    assert places == [(0, 0), (0, 1), (3, 0), (1, 0), (1, 1), (3, 1), (2, 0)]
    assert KVGroups.of(3).parts == (None,) and KVGroups.of(3, (8, 8, 8)).parts == (0,)


def test_a_table_of_your_own_serves_all_layers(tiny_hybrid, make_prompt):
    own = type("OwnTable", (BlockTable,), {})
    for caching in False, True:
        llm = LLM(tiny_hybrid, block_size=4, num_blocks=40, block_table=own, enable_prefix_caching=caching)
        expected = Dense(tiny_hybrid).greedy(make_prompt(0, 20), NUM_TOKENS)
        assert llm.runner.kv_groups.windows == (EVERYTHING,)
        assert llm.generate(make_prompt(0, 20), GREEDY)[0].outputs[0].token_ids == expected


@pytest.fixture
def tiny_hybrid(tmp_path):
    SAVE["hybrid"](tmp_path)
    assert CONTEXT >= 20 + NUM_TOKENS
    return tmp_path
