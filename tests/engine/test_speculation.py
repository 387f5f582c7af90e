"""Whatever is guessed, nothing else is said: texts with drafts are those without, to the last log probability."""

import re
from itertools import product

import numpy as np
import pytest
from engine.checkpoints import VOCAB, every_model
from engine.engine_machine import machine
from engine.guessing import Knowing, SameModel, speculate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test as run

from minipage import LLM, SamplingParams, StructuredOutputsParams
from minipage.engine.drafts import NGrams, find
from minipage.engine.speculation import CHEAP_ROWS
from minipage.errors import ConfigurationError

WAYS = {
    "greedy": {"temperature": 0},
    "seeded": {"seed": 1},
    "n=3": {"seed": 2, "n": 3},
    "penalties": {"seed": 3, "presence_penalty": 0.7, "repetition_penalty": 1.2, "logit_bias": {5: 2.0}},
    "logprobs": {"temperature": 0, "logprobs": 2},
    "stop tokens": {"seed": 4, "stop_token_ids": tuple(range(0, VOCAB, 9)), "min_tokens": 5},
    "beams": {"beam_width": 3},
}
ENGINES = {
    "calm": {},
    "recompute": {"num_blocks": 18, "max_num_seqs": 4},
    "swap": {"num_blocks": 18, "max_num_seqs": 4, "preemption": "swap", "swap_space": "64KiB"},
    "caching": {"enable_prefix_caching": True},
    "little steps": {"max_num_batched_tokens": 5, "max_num_seqs": 4},
    "int8": {"kv_cache_dtype": "int8"},
}
NUM_TOKENS = 17
MISTAKES = {"never": lambda place: False, "at times": lambda place: place % 3 == 1, "always": lambda place: True}


@pytest.fixture(scope="module")
def prompts(make_prompt):
    first = make_prompt(0, 9)
    return [first, [*first[:5], 1, 2], make_prompt(1, 3)]


def serve(llm, prompts, params):
    """The outputs, and how many steps it took; after each, everything is accounted for."""
    ids = [llm.add_request(prompt, params) for prompt in prompts]
    done, num_steps = {}, 0
    while llm.has_unfinished_requests():
        done |= {output.request_id: output for output in llm.step() if output.finished}
        llm.scheduler.check_integrity()
        for group in llm.scheduler.running:
            for seq in group.sequences:
                table = seq.block_table
                assert len(table) <= -(-table.num_tokens // llm.block_pool.block_size) or group.is_sharing
                assert table.num_tokens < len(seq.token_ids), "a token counts as computed before it is drawn"
        num_steps += 1
    assert llm.block_pool.num_used == 0
    return [done[i] for i in ids], num_steps


def told(outputs):
    return [
        [(text.token_ids, text.finish_reason, text.stop_reason, text.text, text.logprobs) for text in output.outputs]
        for output in outputs
    ]


def cases():
    """Every way in every engine, by default with a guesser of one kind; the rest is slow."""
    for (i, way), (j, engine), (k, mistakes) in product(enumerate(WAYS), enumerate(ENGINES), enumerate(MISTAKES)):
        yield pytest.param(way, engine, mistakes, marks=() if (i + j) % 3 == k else pytest.mark.slow)


@pytest.mark.parametrize(("way", "engine", "mistakes"), cases())
def test_texts_are_those_without_drafts(tiny, prompts, way, engine, mistakes):
    options = {"block_size": 4, "num_blocks": 64} | ENGINES[engine]
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, **WAYS[way])
    plain, _ = serve(LLM(tiny, **options), prompts, params)
    known = [[*output.prompt_token_ids, *text.token_ids] for output in plain for text in output.outputs]
    llm = LLM(tiny, **options)
    wrong = MISTAKES[mistakes]
    speculation = speculate(llm, Knowing(known, wrong))
    outputs, _ = serve(llm, prompts, params)
    for mine, expected in zip(told(outputs), told(plain), strict=True):
        for one, other in zip(mine, expected, strict=True):
            assert one[:4] == other[:4]
            assert same_logprobs(one[4], other[4])
    if way != "beams" and engine == "calm":
        assert speculation.num_drafts > 0
        assert (sum(speculation.num_accepted) == 0) == wrong(0)


def same_logprobs(ours, theirs):
    if ours is None or theirs is None:
        return ours is theirs
    return all(
        list(one) == list(other) and np.allclose([p.logprob for p in one.values()], [p.logprob for p in other.values()])
        for one, other in zip(ours, theirs, strict=True)
    )


def test_right_drafts_save_steps_and_wrong_ones_cost_none(tiny, make_prompt):
    prompt, params = make_prompt(0, 9), SamplingParams(temperature=0, max_tokens=21, ignore_eos=True)
    [plain], num_plain = serve(LLM(tiny, num_blocks=64), [prompt], params)
    known = [prompt + plain.outputs[0].token_ids]
    counts = {}
    for name, wrong in {"right": lambda place: False, "wrong": lambda place: True}.items():
        llm = LLM(tiny, num_blocks=64)
        speculation = speculate(llm, Knowing(known, wrong))
        _, counts[name] = serve(llm, [prompt], params)
        assert speculation.num_draft_tokens > 0
    assert counts["right"] == 1 + 4  # the prompt gives one token, and then each step five
    assert counts["wrong"] == num_plain


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_no_text_is_longer_than_asked(tiny, make_prompt, max_tokens):
    prompt = make_prompt(0, 6)
    [long], _ = serve(LLM(tiny, num_blocks=64), [prompt], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    llm = LLM(tiny, num_blocks=64, max_model_len=len(prompt) + max_tokens)
    speculate(llm, Knowing([prompt + long.outputs[0].token_ids]))
    [output], _ = serve(llm, [prompt], SamplingParams(temperature=0, ignore_eos=True, max_tokens=max_tokens))
    assert output.outputs[0].token_ids == long.outputs[0].token_ids[:max_tokens]
    assert llm.stats()["vllm:generation_tokens"] == max_tokens


def test_what_comes_after_the_end_is_dropped_and_not_counted(tiny, make_prompt):
    prompt = make_prompt(0, 6)
    [long], _ = serve(LLM(tiny, num_blocks=64), [prompt], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    said = long.outputs[0].token_ids
    stop = next(token for token in said[2:] if token not in said[:2])
    llm = LLM(tiny, num_blocks=64)
    speculate(llm, Knowing([prompt + said]))
    [output], _ = serve(llm, [prompt], SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(stop,)))
    assert output.outputs[0].token_ids == said[: said.index(stop) + 1]
    assert llm.stats()["vllm:generation_tokens"] == said.index(stop) + 1


def test_rejected_tokens_are_never_found_as_a_prefix(tiny, make_prompt):
    prompt, params = make_prompt(0, 5), SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    [plain], _ = serve(LLM(tiny, num_blocks=64), [prompt], params)
    known = prompt + plain.outputs[0].token_ids
    llm = LLM(tiny, num_blocks=64, block_size=2, enable_prefix_caching=True)
    speculate(llm, Knowing([known], lambda place: place % 2 == 0))
    serve(llm, [prompt], params)
    cache = llm.scheduler.prefix_cache
    for end in range(6, len(known)):
        lie = [*known[:end], known[end] ^ 1, *known[end + 1 :]]
        assert len(cache.find(lie)[0]) <= end // 2
    assert len(cache.find(known)[0]) >= len(known) // 2 - 3, "what is right is found"


def test_structured_texts_are_those_without_drafts():
    pytest.importorskip("llguidance")
    pattern = "([a-m]{4}[0-9]{2}){3}"
    params = SamplingParams(seed=5, max_tokens=40, structured_outputs=StructuredOutputsParams(regex=pattern))
    [plain] = LLM().generate(["To be"], params)
    said = plain.outputs[0].token_ids
    for wrong in (lambda place: False, lambda place: place % 3 == 0):
        llm = LLM()
        speculation = speculate(llm, Knowing([plain.prompt_token_ids + said], wrong))
        [output] = llm.generate(["To be"], params)
        assert output.outputs[0].token_ids == said
        assert sum(speculation.num_accepted) > 0
    assert re.fullmatch(pattern, plain.outputs[0].text)


def test_a_failing_step_loses_nothing(tiny, make_prompt, monkeypatch):
    prompt, params = make_prompt(0, 5), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    [plain], _ = serve(LLM(tiny, num_blocks=64), [prompt], params)
    known = prompt + plain.outputs[0].token_ids
    for phase in ("copy", "forward", "sample"):
        llm = LLM(tiny, num_blocks=64)
        speculate(llm, Knowing([known]))
        request_id = llm.add_request(prompt, params)
        llm.step()
        with monkeypatch.context() as patch:
            patch.setattr(llm.runner, phase, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                llm.step()
        llm.scheduler.check_integrity()
        last = None
        while llm.has_unfinished_requests():
            [last] = llm.step()
        assert last.request_id == request_id
        assert last.outputs[0].token_ids == known[5:]


@pytest.fixture(scope="module")
def same_model(tiny):
    return SameModel(tiny, VOCAB)


def test_every_kernel_call_reads_its_own_prefix_with_drafts(tiny, same_model):
    run(machine(tiny, proposer=same_model), settings=programs(10))


@pytest.mark.slow
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
def test_every_kernel_call_reads_its_own_prefix_with_drafts_in_more_programs(tiny, same_model, preemption, caching):
    run(machine(tiny, proposer=same_model, preemption=preemption, caching=caching), settings=programs(150))


def programs(count):
    return settings(max_examples=count, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))


def test_a_draft_model_of_the_same_tokenizer():
    params = SamplingParams(temperature=0, max_tokens=21)
    llm = LLM(speculative_config={"model": "shakespeare", "num_speculative_tokens": 3, "only_if_quicker": False})
    assert llm.generate("To be", params)[0].outputs[0].text == LLM().generate("To be", params)[0].outputs[0].text
    assert llm.speculation.num_accepted == [llm.speculation.num_drafts] * 3, "it agrees with itself"


@every_model
def test_n_grams_in_the_engine(tiny, make_prompt):
    """A prompt that repeats itself is guessed at, and nothing else is said."""
    prompt, params = make_prompt(0, 8) * 3, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    llm = LLM(tiny, speculative_config={"method": "ngram", "num_speculative_tokens": 3, "only_if_quicker": False})
    assert told(llm.generate([prompt], params)) == told(LLM(tiny, num_blocks=64).generate([prompt], params))
    assert llm.speculation.num_draft_tokens > 0


def test_a_draft_model_of_another_tokenizer_is_refused(tiny):
    with pytest.raises(ConfigurationError, match=f"has 512 tokens, and the model itself {VOCAB}|same tokenizer"):
        LLM(tiny, speculative_config={"model": "shakespeare"})


def test_large_steps_have_no_drafts(tiny, make_prompt):
    llm = LLM(tiny, num_blocks=64)
    prompts = [make_prompt(i, 5) for i in range(CHEAP_ROWS)]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    plain, _ = serve(LLM(tiny, num_blocks=64), prompts, params)
    speculation = speculate(llm, Knowing([output.prompt_token_ids + output.outputs[0].token_ids for output in plain]))
    speculation.most_rows = CHEAP_ROWS  # also on a GPU
    serve(llm, prompts, params)
    assert speculation.num_drafts == 0
    serve(llm, prompts[:5], params)
    assert 0 < speculation.num_draft_tokens


def test_room_for_drafts_is_shared_out(tiny, make_prompt):
    """The first draft of a text is right most often: rather one for each than all for the first."""
    prompts, params = (
        [make_prompt(i, 5) for i in range(4)],
        SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    )
    plain, _ = serve(LLM(tiny, num_blocks=64), prompts, params)
    llm = LLM(tiny, num_blocks=64)
    speculation = speculate(llm, Knowing([output.prompt_token_ids + output.outputs[0].token_ids for output in plain]))
    speculation.most_rows, shares, forward = 10, [], llm.forward

    def watched(plan):
        shares.append([chunk.num_tokens - 1 for chunk in plan.chunks])
        return forward(plan)

    llm.forward = watched
    outputs, _ = serve(llm, prompts, params)
    assert [output.outputs[0].token_ids for output in outputs] == [output.outputs[0].token_ids for output in plain]
    assert [2, 2, 1, 1] in shares, "six drafts for four texts"


def test_who_is_always_wrong_is_asked_less_and_less_often(tiny, make_prompt):
    prompt = make_prompt(0, 5)
    params = SamplingParams(temperature=0, max_tokens=50, ignore_eos=True)
    [plain], _ = serve(LLM(tiny, num_blocks=64), [prompt], params)
    llm = LLM(tiny, num_blocks=64)
    speculation = speculate(llm, Knowing([prompt + plain.outputs[0].token_ids], lambda place: True))
    serve(llm, [prompt], params)
    assert 0 < speculation.num_drafts <= 12, "after n wrong ones in a row, the next n - 1 tokens are not guessed at"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 3), st.integers(0, 2))
def test_the_longest_end_that_was_there_before_is_found(token_ids, shortest, more):
    longest, n = shortest + more, len(token_ids)

    def expected():
        for length in range(longest, shortest - 1, -1):
            for stop in range(length, n):
                if token_ids[stop - length : stop] == token_ids[n - length :]:
                    return stop
        return -1

    assert find(np.array(token_ids), shortest, longest) == expected()
    [drafts] = NGrams(shortest, longest).propose([token_ids], [4])
    text = token_ids.copy()
    for i in range(4 if expected() >= 0 else 0):
        text.append(text[expected() + i])
    assert token_ids + drafts == text, "what followed, and if that ends with the text, the drafts themselves"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "speculative_config is {}"),
        ("ngram", "speculative_config is 'ngram'"),
        ({"method": "eagle"}, "method 'eagle'"),
        ({"method": "ngram", "model": "gpt2"}, "give method 'ngram', or a model"),
        ({"method": "draft_model"}, "give method 'ngram', or a model"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens is 0"),
        ({"num_speculative_tokens": 2, "draft": 1}, "may have method, model"),
        ({"prompt_lookup_min": 3, "prompt_lookup_max": 2}, "prompt_lookup_min is 3, more than prompt_lookup_max, 2"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(tiny, config, message):
    with pytest.raises(ConfigurationError, match=message):
        LLM(tiny, speculative_config=config)


def test_numbers_larger_than_any_text_are_as_good_as_its_length(tiny):
    prompt, params = [1, 2, 3] * 5, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    expected = LLM(tiny, num_blocks=64).generate(prompt, params)[0].outputs
    config = {"num_speculative_tokens": 10**30, "prompt_lookup_max": 10**30, "only_if_quicker": False}
    llm = LLM(tiny, num_blocks=64, speculative_config=config)
    assert llm.generate(prompt, params)[0].outputs == expected
    assert llm.stats()["vllm:spec_decode_num_draft_tokens"] > 0
