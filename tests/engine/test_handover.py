"""A prompt that one engine has computed goes on in another, in another process, as if it had never moved."""

import os
import resource
import sys
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
from engine.checkpoints import every_model

from minipage.engine.handover import Handover, elsewhere, hand_over, take_over
from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, EngineDeadError, InvalidRequestError
from minipage.sampling import SamplingParams

OPTIONS = {"block_size": 4, "num_blocks": 32, "enable_prefix_caching": True}
PARAMS = [
    SamplingParams(temperature=0, max_tokens=9, ignore_eos=True),
    SamplingParams(seed=3, n=2, max_tokens=9, ignore_eos=True),
]


def computed(llm):
    """A list that grows by the number of tokens of each step."""
    counts, forward = [], llm.forward
    llm.forward = lambda plan: counts.append(sum(chunk.num_tokens for chunk in plan.chunks)) or forward(plan)
    return counts


def texts(llm, prompt, params):
    [output] = llm.generate([prompt], params)
    llm.scheduler.check_integrity()
    return [text.token_ids for text in output.outputs]


@pytest.mark.parametrize("unit", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_say_what_one_engine_says(tiny, make_prompt, unit):
    plain, llm = LLM(tiny, num_blocks=64), LLM(tiny, **OPTIONS, prefix_match_unit=unit)
    counts = computed(llm)
    with elsewhere(partial(LLM, tiny, **OPTIONS)) as prefill:
        for prompt in (make_prompt(i, length) for i, length in enumerate((18, 16, 5, 1))):
            handover = prefill(prompt)
            assert handover.token_ids == prompt
            assert take_over(llm, handover) == handover.num_blocks == -(-len(prompt) // 4)
            handover.discard()
            for params in PARAMS:
                counts.clear()
                assert texts(llm, prompt, params) == texts(plain, prompt, params)
                assert counts[0] == 1 if unit else counts[0] <= 4, "the prompt was computed twice"
        with pytest.raises(InvalidRequestError):
            prefill([1] * 100)


def test_an_answer_that_nobody_waits_for_is_not_that_to_the_next_prompt(tiny, make_prompt, monkeypatch):
    discarded, discard = [], Handover.discard
    monkeypatch.setattr(Handover, "discard", lambda handover: (discarded.append(handover.memory), discard(handover)))
    with elsewhere(partial(LLM, tiny, **OPTIONS)) as prefill:
        with monkeypatch.context() as patch:
            patch.setattr("pickle.load", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                prefill(make_prompt(0))
        with pytest.raises(EngineDeadError, match="start another"):
            prefill(make_prompt(1))
    assert len(discarded) == 1 and not os.path.exists(discarded[0]), "K and V are left in shared memory"


def test_the_first_engine_keeps_no_blocks_of_texts_that_are_elsewhere(tiny, make_prompt):
    llm = LLM(tiny, **OPTIONS)
    hand_over(llm, make_prompt(0, 18)).discard()
    assert llm.block_pool.num_used == 0
    assert not llm.has_unfinished_requests()


def test_an_interrupt_at_any_line_leaves_no_request_that_never_ends(tiny, make_prompt):
    code = hand_over.__code__
    expected = texts(LLM(tiny, num_blocks=64), make_prompt(1), PARAMS[0])

    def interrupted(llm, line):
        """Hand over, and be interrupted where a line of its file comes."""

        def trace(frame, event, arg):
            if frame.f_code.co_filename != code.co_filename:
                return None
            if event == "line" and frame.f_lineno == line:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            hand_over(llm, make_prompt(0)).discard()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    num_interrupted = 0
    for line in sorted({line for *_, line in code.co_lines() if line}):
        llm = LLM(tiny, **OPTIONS)
        num_interrupted += interrupted(llm, line)
        assert texts(llm, make_prompt(1), PARAMS[0]) == expected
        assert llm.block_pool.num_used == 0 and not llm.requests
    assert num_interrupted > 15


def in_numpy(array):
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


@every_model
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_the_table_differs_and_what_it_names_does_not(tiny, make_prompt, dtype):
    first, second = (LLM(tiny, **OPTIONS, kv_cache_dtype=dtype) for _ in range(2))
    second.generate([make_prompt(7, 21)], PARAMS[0])
    prompt = make_prompt(0, 18)
    handover = hand_over(first, prompt)
    assert take_over(second, handover) == 5
    handover.discard()
    found = [llm.scheduler.prefix_cache.find([*prompt, 0]).blocks for llm in (first, second)]
    assert len(found[0]) == len(found[1]) == 4
    assert found[0] != found[1]
    for mine, theirs in zip(first.kv_cache.arrays, second.kv_cache.arrays, strict=True):
        np.testing.assert_array_equal(in_numpy(mine[:, found[0]]), in_numpy(theirs[:, found[1]]))
    assert handover.num_bytes == 5 * first.kv_cache.nbytes // 32


def test_others_go_on_in_both_engines(tiny, make_prompt):
    first, second = (LLM(tiny, **OPTIONS) for _ in range(2))
    for llm in first, second:
        llm.add_request(make_prompt(1, 7), SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
        llm.step()
    handover = hand_over(first, make_prompt(0, 18))
    take_over(second, handover)
    handover.discard()
    expected = texts(LLM(tiny, num_blocks=64), make_prompt(0, 18), PARAMS[0])
    assert texts(second, make_prompt(0, 18), PARAMS[0]) == expected
    [output] = first.step()
    assert len(output.outputs[0].token_ids) == 3, "what others have got meanwhile was not told"


def test_without_room_as_much_is_taken_as_there_is(tiny, make_prompt):
    first, second = LLM(tiny, **OPTIONS), LLM(tiny, **OPTIONS | {"num_blocks": 7})
    second.add_request(make_prompt(1, 16), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
    second.step()
    handover = hand_over(first, make_prompt(0, 18))
    assert take_over(second, handover) == second.block_pool.num_free == 3
    handover.discard()
    second.scheduler.check_integrity()
    expected = texts(LLM(tiny, num_blocks=64), make_prompt(0, 18), PARAMS[0])
    assert texts(second, make_prompt(0, 18), PARAMS[0]) == expected


@pytest.mark.parametrize("length", [63, 16, 1])
def test_a_prompt_may_fill_the_context_and_the_pool(tiny, make_prompt, length):
    """With its first token the text would be over, and its blocks others'."""
    prompt, options = make_prompt(0, length), OPTIONS | {"num_blocks": -(-length // 4)}
    first, second = LLM(tiny, **options), LLM(tiny, **options)
    handover = hand_over(first, prompt)
    assert handover.num_blocks == take_over(second, handover) == options["num_blocks"]
    handover.discard()
    one = replace(PARAMS[0], max_tokens=1)
    assert texts(second, prompt, one) == texts(LLM(tiny, num_blocks=64), prompt, one)
    assert first.block_pool.num_used == 0


@pytest.mark.parametrize("length", [12, 13, 14, 15])
def test_where_steps_overlap_nobody_takes_the_blocks_first(tiny, make_prompt, length):
    """The next step is planned before the first token is known. An earlier text goes on, and may want a block."""
    first, prompt = LLM(tiny, **OPTIONS | {"num_blocks": 8}, async_scheduling=True), make_prompt(0, 16)
    first.add_request(make_prompt(1, length), replace(PARAMS[0], max_tokens=8))
    first.step()
    handover = hand_over(first, prompt)
    assert handover.num_blocks == 4
    handover.discard()


def test_what_is_taken_over_is_not_written_to_by_a_step_that_was_launched_before(tiny, make_prompt):
    """A text that ends by a token is in the next step already, which writes to blocks that are free by then."""
    first, plain = LLM(tiny, **OPTIONS), LLM(tiny, num_blocks=64)
    second = LLM(tiny, **OPTIONS | {"num_blocks": 6}, async_scheduling=True)
    [[token, *_]] = texts(plain, make_prompt(1, 6), PARAMS[0])
    second.add_request(make_prompt(2, 6), replace(PARAMS[0], max_tokens=3))
    second.add_request(make_prompt(1, 6), replace(PARAMS[0], stop_token_ids=(token,)))
    second.step()
    assert second.block_pool.num_free == 4
    handover = hand_over(first, make_prompt(0, 13))
    take_over(second, handover)
    handover.discard()
    assert texts(second, make_prompt(0, 13), PARAMS[0]) == texts(plain, make_prompt(0, 13), PARAMS[0])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"block_size": 8}, "blocks of 8 tokens.* has blocks of 4 tokens"),
        ({"kv_cache_dtype": "int8"}, "int8.*float32"),
        ({"enable_prefix_caching": False}, "set enable_prefix_caching"),
    ],
)
def test_engines_of_another_kind_are_refused(tiny, make_prompt, other, message):
    handover = hand_over(LLM(tiny, **OPTIONS), make_prompt(0, 18))
    with pytest.raises(ConfigurationError, match=message):
        take_over(LLM(tiny, **OPTIONS | other), handover)
    handover.discard()


@pytest.mark.parametrize("tiny", ["hybrid"], indirect=True)
def test_a_model_with_windows_is_refused(tiny, make_prompt):
    with pytest.raises(ConfigurationError, match="none holds all of a prompt"):
        hand_over(LLM(tiny, **OPTIONS), make_prompt(0, 18))


def test_a_prompt_that_cannot_be_served_is_refused(tiny):
    with pytest.raises(InvalidRequestError):
        hand_over(LLM(tiny, **OPTIONS), [1] * 100)


@pytest.mark.parametrize("wrong", [None, "a prompt", [1, 2, 3]])
def test_what_nobody_has_handed_over_is_refused(tiny, wrong):
    with pytest.raises(ConfigurationError, match=r"handover is .*; give what hand_over"):
        take_over(LLM(tiny, **OPTIONS), wrong)


def test_what_was_discarded_is_refused_and_costs_no_blocks(tiny, make_prompt):
    llm = LLM(tiny, **OPTIONS)
    handover = hand_over(llm, make_prompt(0, 18))
    os.truncate(handover.memory, 100)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="does not have what is handed over"):
            take_over(llm, handover)
        handover.discard()
    llm.scheduler.check_integrity()
    assert llm.block_pool.num_used == 0


def test_where_shared_memory_is_full_it_is_said(tiny, make_prompt):
    """A limit on the size of files stands for it; each block takes 1 KiB."""
    llm, limits = LLM(tiny, **OPTIONS), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(ConfigurationError, match="cannot hold 5 blocks"):
            hand_over(llm, make_prompt(0, 18))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not llm.has_unfinished_requests()
    assert llm.block_pool.num_used == 0


@pytest.mark.parametrize(
    ("make", "error"), [(partial(LLM, block_size=0), ConfigurationError), (partial(os._exit, 3), EngineDeadError)]
)
def test_an_engine_that_cannot_be_made_elsewhere_or_has_ended_is_told_here(make, error):
    with elsewhere(make) as prefill:
        for _ in range(2):
            with pytest.raises(error):
                prefill([1, 2, 3])
