"""Greedy tokens are the same however they are computed.

Paging, chunking, batching and preemption may decide when and where K and V are computed, never what they are. So each
test here generates the same texts under another such decision, and compares them token for token with texts that knew
no cache at all: a dense forward pass over the whole sequence for every new token.
"""

import pytest
from engine.checkpoints import every_model
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minipage.engine.llm import LLM
from minipage.model.layers.plain import PlainLayers
from minipage.sampling import SamplingParams

pytestmark = every_model
NUM_PROMPTS, NUM_TOKENS = 32, 10
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def prompts(make_prompt):
    """32 prompts of 1 to 32 tokens, in no order of length."""
    return [make_prompt(i, length=1 + 7 * i % 32) for i in range(NUM_PROMPTS)]


@pytest.fixture(scope="module")
def expected(dense, prompts):
    """The texts, from a dense forward pass with no cache."""
    return [dense.greedy(prompt, NUM_TOKENS) for prompt in prompts]


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


def assert_nothing_leaked(llm):
    llm.scheduler.check_integrity()
    assert llm.block_pool.num_free == llm.block_pool.num_blocks, "blocks are in use, but no request is left"
    assert not llm.requests and not llm.has_unfinished_requests()


def test_the_texts_are_worth_comparing(expected):
    assert len(set(map(tuple, expected))) == NUM_PROMPTS, "different prompts lead to the same text"
    assert len({token for text in expected for token in text}) > 20, "the model says hardly more than one word"


@pytest.mark.parametrize("block_size", [1, 2, 7, 16, 64])
def test_the_block_size_changes_nothing(tiny, prompts, expected, block_size):
    llm = LLM(tiny, block_size=block_size, num_blocks=-(-64 * NUM_PROMPTS // block_size))
    assert tokens(llm.generate(prompts, GREEDY)) == expected
    assert_nothing_leaked(llm)


def test_one_at_a_time_or_together_is_the_same(tiny, prompts, expected):
    llm = LLM(tiny, num_blocks=128)
    alone = [tokens(llm.generate(prompt, GREEDY))[0] for prompt in prompts[::3]]
    assert alone == expected[::3]
    assert tokens(llm.generate(prompts, GREEDY)) == expected


@pytest.mark.parametrize("max_num_batched_tokens", [1, 3, 17, 2048])
def test_prompts_whole_or_in_chunks_are_the_same(tiny, prompts, expected, max_num_batched_tokens):
    largest = []

    class Watched(LLM):
        def schedule(self):
            plan = super().schedule()
            largest.append(sum(chunk.num_tokens for chunk in plan.chunks))
            return plan

    llm = Watched(tiny, block_size=4, num_blocks=512, max_num_batched_tokens=max_num_batched_tokens)
    assert tokens(llm.generate(prompts[:12], GREEDY)) == expected[:12]
    assert max(largest) == min(max_num_batched_tokens, sum(map(len, prompts[:12])))
    assert_nothing_leaked(llm)


@pytest.mark.parametrize("max_num_batched_tokens", [3, 2048])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_preemption_loses_and_changes_nothing(tiny, dense, make_prompt, block_size, max_num_batched_tokens):
    """Six short prompts start together; the pool holds one of their texts in full, and hardly more."""
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    prompts = [make_prompt(i, length=3 + i % 2) for i in range(6)]
    llm = LLM(
        tiny, block_size=block_size, num_blocks=-(-28 // block_size), max_num_batched_tokens=max_num_batched_tokens
    )
    outputs = llm.generate(prompts, params)
    preemptions = [output.metrics.num_preemptions for output in outputs]
    assert preemptions[0] == 0, f"the oldest of all was preempted for a later one: {preemptions}"
    assert min(preemptions[1:]) >= 1 and sum(preemptions) >= 8, f"the pool was too large to test this: {preemptions}"
    assert tokens(outputs) == [dense.greedy(prompt, 24) for prompt in prompts]
    assert_nothing_leaked(llm)


def test_few_seats_change_nothing(tiny, prompts, expected):
    llm = LLM(tiny, num_blocks=64, max_num_seqs=3)
    assert tokens(llm.generate(prompts, GREEDY)) == expected


@pytest.mark.parametrize("layers", ["compiled", "plain", "torch"])
@pytest.mark.parametrize("attention", ["cpu", "loops", "reference"])
def test_all_layers_and_kernels_say_the_same(tiny, prompts, expected, layers, attention, monkeypatch):
    arrays = "torch" if layers == "torch" else "numpy"
    if layers == "plain":
        monkeypatch.setattr("minipage.model.place.CompiledLayers", PlainLayers)
    llm = LLM(tiny, block_size=5, num_blocks=100, max_num_batched_tokens=50, arrays=arrays, attention=attention)
    assert tokens(llm.generate(prompts[::3], GREEDY)) == expected[::3]


@settings(max_examples=settings.default.max_examples // 4)
@given(
    chosen=st.lists(st.integers(0, NUM_PROMPTS - 1), min_size=1, max_size=8),
    block_size=st.integers(1, 9),
    spare_blocks=st.integers(0, 12),
    seats=st.integers(1, 8),
    max_num_batched_tokens=st.integers(1, 40),
)
@example(chosen=[31, 31, 31], block_size=3, spare_blocks=0, seats=8, max_num_batched_tokens=40)  # the same text thrice
def test_any_mixture_of_sizes_is_the_same(
    tiny, prompts, expected, chosen, block_size, spare_blocks, seats, max_num_batched_tokens
):
    longest = max(len(prompts[i]) for i in chosen) + NUM_TOKENS - 1
    llm = LLM(
        tiny,
        block_size=block_size,
        num_blocks=-(-longest // block_size) + spare_blocks,
        max_num_seqs=seats,
        max_num_batched_tokens=max_num_batched_tokens,
        attention="reference",
    )
    assert tokens(llm.generate([prompts[i] for i in chosen], GREEDY)) == [expected[i] for i in chosen]
    assert_nothing_leaked(llm)
