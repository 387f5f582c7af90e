"""What a request asks for is what it gets: seeds, lengths, stop tokens, log probabilities, each whatever else runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minipage.engine.llm import LLM
from minipage.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)


def tokens(llm, prompts, params):
    return [output.outputs[0].token_ids for output in llm.generate(prompts, params)]


# ---- seeds


@pytest.fixture(scope="module")
def seeded(tiny, make_prompt):
    """[(prompt, params, the text when it is generated alone)] of five seeded requests."""
    llm = LLM(tiny, num_blocks=64, attention="reference")
    requests = []
    for i in range(5):
        prompt = make_prompt(i, length=3 + i)
        params = SamplingParams(seed=i, temperature=0.5 + i / 4, top_k=20, top_p=0.95, max_tokens=8, ignore_eos=True)
        requests.append((prompt, params, tokens(llm, prompt, params)[0]))
    return requests


@settings(max_examples=settings.default.max_examples // 4)
@given(st.permutations(range(5)), st.integers(0, 5), st.integers(8, 30), st.integers(1, 40))
def test_a_seeded_text_is_the_same_in_any_company(tiny, seeded, order, neighbours, num_blocks, max_num_batched_tokens):
    options = {"block_size": 2, "num_blocks": num_blocks, "max_num_batched_tokens": max_num_batched_tokens}
    llm = LLM(tiny, **options, attention="reference", seed=4)
    for i in range(neighbours):
        llm.add_request([i + 1], SamplingParams(max_tokens=9))
    prompts, params, alone = zip(*(seeded[i] for i in order), strict=True)
    assert tokens(llm, prompts, params) == list(alone)


def test_a_seeded_text_survives_its_preemptions(tiny):
    params = SamplingParams(seed=3, max_tokens=20, ignore_eos=True)
    expected = tokens(LLM(tiny, num_blocks=64), [1, 2], params)[0]
    small = LLM(tiny, block_size=2, num_blocks=11)
    outputs = small.generate([[1, 2]] * 4, params)
    assert [output.outputs[0].token_ids for output in outputs] == [expected] * 4
    assert outputs[-1].metrics.num_preemptions >= 2


def test_the_engines_own_seed_makes_the_rest_repeatable(tiny):
    prompts, params = [[1, 2]] * 3, SamplingParams(max_tokens=12, ignore_eos=True)
    twins = LLM(tiny, num_blocks=32, seed=5), LLM(tiny, num_blocks=64, block_size=3, seed=5)
    texts = [[tokens(llm, prompts, params) for _ in range(2)] for llm in twins]
    assert texts[0] == texts[1], "two engines with the same seed, asked the same, said different things"
    assert len({tuple(text) for call in texts[0] for text in call}) == 6, "two requests drew the same numbers"
    assert tokens(LLM(tiny, num_blocks=32, seed=6), prompts, params) != texts[0][0]
    unseeded = [tokens(LLM(tiny, num_blocks=32), prompts, params) for _ in range(2)]
    assert unseeded[0] != unseeded[1]


# ---- where it ends


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens_are_generated(llm, max_tokens):
    output = llm.generate([1, 2, 3], SamplingParams(max_tokens=max_tokens, ignore_eos=True))[0].outputs[0]
    assert len(output.token_ids) == max_tokens and output.finish_reason == "length" and output.stop_reason is None


@pytest.mark.parametrize("max_tokens", [None, 100])
def test_the_context_ends_a_text(llm, dense, make_prompt, max_tokens):
    prompt = make_prompt(0, length=50)
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    output = llm.generate(prompt, params)[0].outputs[0]
    assert output.token_ids == dense.greedy(prompt, 14), "prompt and text together fill the context of 64"
    assert output.finish_reason == "length"


def test_a_shorter_context_may_be_chosen(tiny):
    llm = LLM(tiny, num_blocks=8, max_model_len=9)
    assert len(tokens(llm, [1, 2, 3], SamplingParams(max_tokens=None, ignore_eos=True))[0]) == 6


def test_without_max_tokens_a_text_fills_a_small_pool_and_no_more(tiny, dense):
    llm = LLM(tiny, block_size=4, num_blocks=3)
    output = llm.generate([1, 2], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))[0].outputs[0]
    assert output.token_ids == dense.greedy([1, 2], 11), "12 slots hold 2 + 10 tokens; the last token needs none"
    assert output.finish_reason == "length"


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_models_end_of_text_token_ends_it(tiny, dense, tmp_path, ignore_eos):
    text = dense.greedy([1, 2, 3], 12)
    eos = text[4]
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": eos}))
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=ignore_eos)
    output = LLM(folder, num_blocks=8).generate([1, 2, 3], params)[0].outputs[0]
    if ignore_eos:
        assert (output.token_ids, output.finish_reason) == (text, "length")
    else:
        assert (output.token_ids, output.finish_reason) == (text[: text.index(eos) + 1], "stop")
        assert output.stop_reason is None, "it is for what the request itself has asked for, as in vLLM"


@pytest.mark.parametrize("min_tokens", [0, 1, 3, 6])
def test_no_stop_token_is_chosen_before_min_tokens(llm, dense, min_tokens):
    prompt = [1, 2, 3]
    stops = sorted(set(dense.greedy(prompt, 10)))
    params = SamplingParams(temperature=0, max_tokens=10, min_tokens=min_tokens, stop_token_ids=stops, ignore_eos=True)
    expected = []
    while not (expected and expected[-1] in stops) and len(expected) < 10:
        logits = dense.logits([*prompt, *expected])[-1]
        if len(expected) < min_tokens:
            logits[stops] = -np.inf
        expected.append(int(logits.argmax()))
    output = llm.generate(prompt, params)[0].outputs[0]
    assert output.token_ids == expected
    assert output.stop_reason in stops and len(expected) > min_tokens


# ---- log probabilities


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_logprobs_are_those_of_the_dense_model(tiny, dense, make_prompt, count):
    llm = LLM(tiny, block_size=2, num_blocks=16, max_num_batched_tokens=6)
    prompts = [make_prompt(i) for i in range(3)]
    params = SamplingParams(temperature=0.7, top_k=5, seed=1, max_tokens=8, logprobs=count, ignore_eos=True)
    for output in llm.generate(prompts, params):
        completion = output.outputs[0]
        rows = dense.logits([*output.prompt_token_ids, *completion.token_ids])[len(output.prompt_token_ids) - 1 :]
        expected = torch.log_softmax(torch.from_numpy(rows).double(), dim=-1).numpy()
        assert len(completion.logprobs) == len(completion.token_ids) == 8
        for token, logprobs, row in zip(completion.token_ids, completion.logprobs, expected, strict=False):
            likely_first = np.argsort(-row).tolist()
            assert set(logprobs) == {token, *likely_first[:count]}
            for other, logprob in logprobs.items():
                assert logprob.logprob == pytest.approx(row[other], abs=1e-4)
                assert logprob.rank == 1 + likely_first.index(other)
        total = sum(row[token] for token, row in zip(completion.token_ids, expected, strict=False))
        assert completion.cumulative_logprob == pytest.approx(total, abs=1e-3)


def test_logprobs_have_the_tokens_words(talker):
    llm = LLM(talker, num_blocks=8)
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, ignore_eos=True)
    output = llm.generate("wave", params)[0].outputs[0]
    for logprobs in output.logprobs:
        assert {token: logprob.decoded_token for token, logprob in logprobs.items()} == {
            token: llm.tokenizer.token_text(token) for token in logprobs
        }


def test_logprobs_come_only_to_those_who_ask(llm):
    asked, silent = llm.generate([[1], [1]], [SamplingParams(max_tokens=3, logprobs=1), SamplingParams(max_tokens=3)])
    assert len(asked.outputs[0].logprobs) == len(asked.outputs[0].token_ids)
    assert silent.outputs[0].logprobs is None and silent.outputs[0].cumulative_logprob is None
