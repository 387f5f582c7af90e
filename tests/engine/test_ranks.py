"""Several ranks must write what one process writes: the same texts, whoever has which heads.

One pair of ranks serves many tests: to start a process takes seconds. Longer histories and other models are slow tests.
"""

import gc

import numpy as np
import pytest
from engine.checkpoints import save_gpt2, save_llama

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError
from minipage.sampling import SamplingParams, StructuredOutputsParams

WAYS = [
    {"temperature": 0},
    {"temperature": 0.8, "seed": 1, "n": 3},
    {"beam_width": 3},
    {"temperature": 0.9, "seed": 2, "top_k": 20, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"temperature": 0, "prompt_logprobs": 2, "logprobs": 2},
    {"temperature": 0, "allowed_token_ids": [3, 5, 7, 11]},
]


def ways(**more):
    return [SamplingParams(max_tokens=12, ignore_eos=True, **way, **more) for way in WAYS]


def same(one, several, prompts, params):
    """Whether two engines write the same, and find it equally likely."""
    found, expected = several.generate(prompts, params), one.generate(prompts, params)
    for a, b in zip(found, expected, strict=True):
        assert [text.token_ids for text in a.outputs] == [text.token_ids for text in b.outputs]
        assert [text.finish_reason for text in a.outputs] == [text.finish_reason for text in b.outputs]
        for x, y in zip(a.prompt_logprobs or (), b.prompt_logprobs or (), strict=True):
            assert (x or {}).keys() == (y or {}).keys()
            np.testing.assert_allclose(
                [each.logprob for each in (x or {}).values()], [each.logprob for each in (y or {}).values()], atol=1e-3
            )


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """The folder of a Llama with four heads of q, and one of K and V that all of them read."""
    folder = tmp_path_factory.mktemp("grouped")
    save_llama(folder, num_key_value_heads=1)
    return folder


@pytest.fixture(scope="module")
def two(grouped):
    """Two ranks, which both have the only head of K and V."""
    llm = LLM(grouped, block_size=4, num_blocks=20, preemption="swap", swap_space="64KiB", enable_prefix_caching=True,
              tensor_parallel_size=2)  # fmt: skip
    yield llm
    llm.runner.shutdown()


@pytest.fixture(scope="module")
def one(grouped):
    return LLM(grouped, block_size=4, num_blocks=200)


def test_two_ranks_write_what_one_process_writes(one, two, make_prompt):
    params = ways()
    prompts = [make_prompt(i, 9 + i) for i in range(len(params))]
    for _ in range(2):  # the second time from the prefix cache; the pool is small, so there is swapping
        same(one, two, prompts, params)
    two.scheduler.check_integrity()
    two.runner.check_integrity()
    assert two.block_pool.num_free == two.block_pool.num_blocks
    assert two.scheduler.num_hit_tokens > 0


def test_each_rank_has_its_part_of_the_heads(two):
    assert two.model.architecture.num_heads == 2
    [ours, theirs] = [np.array(each) for each in two.runner.ask("block", layer=1, block=3)]
    assert ours.shape == theirs.shape == (2, 4, 1, 8)  # K and V, slots, heads, numbers
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # the one head, twice
