"""Whatever goes wrong, the engine goes on: bad requests are refused, broken steps computed again, nobody is hurt."""

import numpy as np
import pytest

from minipage.attention import reference
from minipage.engine.llm import LLM
from minipage.errors import InvalidRequestError, OutOfBlocksError
from minipage.model.tokenizer import ask
from minipage.sampling import SamplingParams

PROMPTS = [[5, 6, 7], [8, 9], [1], [2, 3, 4, 5, 6, 7, 8]]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=4, ignore_eos=True),
    SamplingParams(seed=1, max_tokens=9, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=9, ignore_eos=True),
    SamplingParams(seed=2, max_tokens=6, ignore_eos=True),
]
TIGHT = {"block_size": 2, "num_blocks": 9, "max_num_batched_tokens": 6, "max_num_seqs": 3}  # chunks and preemptions


@pytest.fixture(scope="module")
def expected(tiny):
    """The texts when nothing goes wrong."""
    return [o.outputs[0].token_ids for o in LLM(tiny, num_blocks=64, attention="reference").generate(PROMPTS, PARAMS)]


def serve(llm, patience=200, params=PARAMS, of=lambda output: output.outputs[0].token_ids):
    """Add the four requests and step until they are done, whatever is raised; (their tokens, the errors)."""
    ids = [llm.add_request(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    tokens, errors = {}, []
    while llm.has_unfinished_requests():
        assert (patience := patience - 1), "the engine runs and runs, but its requests do not finish"
        try:
            tokens |= {output.request_id: of(output) for output in llm.step()}
        except (RuntimeError, KeyboardInterrupt) as error:
            errors.append(error)
        llm.scheduler.check_integrity()
    assert llm.block_pool.num_free == llm.block_pool.num_blocks and not llm.requests, "something is left of a request"
    return [tokens[request_id] for request_id in ids], errors


# ---- a step that fails half way


def fails(at, error):
    """Attention that raises `error` at those of its calls (there is one a layer) that are in `at`."""
    calls = iter(range(10**6))

    def attention(*arguments):
        if next(calls) in at:
            raise error
        return reference.paged_attention(*arguments)

    return attention


@pytest.mark.parametrize("error", [RuntimeError("the kernel broke"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("call", range(0, 30, 3))
def test_a_step_whose_attention_fails_is_computed_again(tiny, expected, call, error):
    tokens, errors = serve(LLM(tiny, **TIGHT, attention=fails({call}, error)))
    assert errors == [error], "the error has to reach the caller"
    assert tokens == expected


def test_attention_that_fails_again_and_again_only_costs_time(tiny, expected):
    tokens, errors = serve(LLM(tiny, **TIGHT, attention=fails(range(0, 1000, 5), RuntimeError())))
    assert len(errors) > 5 and tokens == expected


def test_a_failure_during_generate_aborts_only_what_generate_asked_for(tiny, expected):
    llm = LLM(tiny, **TIGHT, attention=fails({2}, KeyboardInterrupt()))
    other = llm.add_request(PROMPTS[0], PARAMS[0])
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS[1:], PARAMS[1:])
    assert set(llm.requests) == {other}
    llm.scheduler.check_integrity()
    outputs = llm.generate(PROMPTS, PARAMS)
    assert [o.outputs[0].token_ids for o in outputs] == expected, "the same engine, a moment later"
    (output,) = llm.step()
    assert output.request_id == other and output.outputs[0].token_ids == expected[0]
    assert llm.block_pool.num_used == 0


class Interrupted(LLM):
    """An engine whose `phase` is interrupted `after` (or before) its work, in step number `step`, counted from 0."""

    phase, after, step_number = "", False, 0

    def _interrupt(self, name, *arguments):
        due = name == self.phase and self.step_number == 0
        self.step_number -= name == self.phase
        if due and not self.after:
            raise KeyboardInterrupt
        result = getattr(super(), name)(*arguments)
        if due and self.after:
            raise KeyboardInterrupt
        return result

    def schedule(self):
        return self._interrupt("schedule")

    def copy(self, plan):
        return self._interrupt("copy", plan)

    def forward(self, plan):
        return self._interrupt("forward", plan)

    def sample(self, plan, logits):
        return self._interrupt("sample", plan, logits)

    def update(self, plan, tokens):
        return self._interrupt("update", plan, tokens)


@pytest.mark.parametrize("step", [0, 3, 5])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("phase", ["schedule", "copy", "forward", "sample", "update"])
def test_ctrl_c_between_any_two_phases_loses_and_changes_nothing(tiny, expected, phase, after, step):
    llm = Interrupted(tiny, **TIGHT, attention="reference")
    llm.phase, llm.after, llm.step_number = phase, after, step
    tokens, errors = serve(llm)
    assert len(errors) == 1 and tokens == expected


WIDE = [
    SamplingParams(n=3, seed=1, max_tokens=6, ignore_eos=True),
    SamplingParams(beam_width=3, max_tokens=6, ignore_eos=True),
    SamplingParams(n=2, seed=2, max_tokens=4, ignore_eos=True),
    SamplingParams(beam_width=2, max_tokens=7, ignore_eos=True),
]
SWAPPING = {"block_size": 2, "num_blocks": 16, "max_num_batched_tokens": 9, "max_num_seqs": 8, "preemption": "swap"}


@pytest.fixture(scope="module")
def expected_wide(tiny):
    outputs = LLM(tiny, num_blocks=64, attention="reference").generate(PROMPTS, WIDE)
    return [[text.token_ids for text in output.outputs] for output in outputs]


@pytest.mark.parametrize("call", range(2, 30, 3))
def test_ctrl_c_while_a_text_is_decoded_to_be_told_loses_none_of_it(talker, monkeypatch, call):
    """A stream of tokens cannot take back what it was given."""
    params = [SamplingParams(seed=seed, max_tokens=12, ignore_eos=True) for seed in range(4)]

    def text(output):
        return output.outputs[0].text

    undisturbed, _ = serve(LLM(talker, num_blocks=64), params=params, of=text)
    calls = []

    def ask_and_break(*arguments):
        said = ask(*arguments)
        calls.append(0)
        if len(calls) == call:
            raise KeyboardInterrupt
        return said

    monkeypatch.setattr("minipage.engine.detokenizer.ask", ask_and_break)
    texts, errors = serve(LLM(talker, num_blocks=64), params=params, of=text)
    assert (texts, len(errors)) == (undisturbed, 1)


@pytest.mark.parametrize("step", [0, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("phase", ["schedule", "copy", "forward", "sample", "update"])
def test_samples_and_beams_survive_it_with_swapping_and_caching(tiny, expected_wide, phase, after, step):
    llm = Interrupted(
        tiny, **SWAPPING, swap_space="64KiB", enable_prefix_caching=True, max_model_len=32, attention="reference"
    )
    llm.phase, llm.after, llm.step_number = phase, after, step
    texts, errors = serve(llm, params=WIDE, of=lambda output: [text.token_ids for text in output.outputs])
    assert len(errors) == 1 and texts == expected_wide


def test_ctrl_c_while_finished_sequences_give_their_blocks_back_leaks_none(tiny, expected, monkeypatch):
    llm = LLM(tiny, **TIGHT, attention="reference")
    finish, calls = llm.scheduler.finish, iter(range(100))

    def interrupted(group, seq):
        if next(calls) == 0:
            raise KeyboardInterrupt  # a text has just been completed, and its blocks are not free yet
        finish(group, seq)

    monkeypatch.setattr(llm.scheduler, "finish", interrupted)
    tokens, errors = serve(llm)
    assert len(errors) == 1 and tokens == expected


# ---- requests that cannot be served

BAD_PROMPTS = {
    "empty": ([], "the prompt is empty"),
    "too large a token": ([1, 60], "token id 60"),
    "negative token": ([-1, 2], "token id -1"),
    "a fraction": ([1, 2.5], r"token id 2\.5"),
    "a fraction first": ([2.5, 1], "2.5"),
    "a truth value": ([1, True], "token id True"),
    "longer than the context": ([1] * 64, "the prompt has 64 tokens.*63"),
    "too long, as an array": (np.ones(64, int), "the prompt has 64 tokens.*63"),
    "a text without a tokenizer": ("To be", "no tokenizer.json"),
    "nothing": (None, "prompt"),
    "a number": (7, "prompt"),
}


@pytest.mark.parametrize(("prompt", "words"), BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_a_bad_prompt_is_refused_and_nobody_else_notices(tiny, expected, prompt, words):
    llm = LLM(tiny, **TIGHT, attention="reference")
    llm.add_request([3, 4], SamplingParams(max_tokens=5))
    llm.step()
    before = set(llm.requests), llm.block_pool.free_queue
    for add in (llm.add_request, lambda bad: llm.generate([[1, 2], bad])):
        with pytest.raises(InvalidRequestError, match=words):
            add(prompt)
        assert (set(llm.requests), llm.block_pool.free_queue) == before, "something of the refused request is left"
    assert [o.outputs[0].token_ids for o in llm.generate(PROMPTS, PARAMS)] == expected


BAD_PARAMS = {
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens is 0"),
    "max_tokens -1": ({"max_tokens": -1}, "max_tokens is -1"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature is nan"),
    "an unknown stop token": ({"stop_token_ids": [60]}, "stop_token_ids.*60"),
    "never fits the pool": ({"max_tokens": 30}, "the whole pool has 9"),
    "nothing left to say": ({"min_tokens": 2, "stop_token_ids": range(60)}, "min_tokens|stop_token_ids"),
}


@pytest.mark.parametrize(("params", "words"), BAD_PARAMS.values(), ids=BAD_PARAMS)
def test_bad_parameters_are_refused_and_nobody_else_notices(tiny, expected, params, words):
    llm = LLM(tiny, **TIGHT, attention="reference")
    ids = [llm.add_request(prompt, p) for prompt, p in zip(PROMPTS, PARAMS, strict=True)]
    llm.step()
    with pytest.raises(InvalidRequestError, match=words):
        llm.add_request([1, 2], SamplingParams(**params))
    assert set(llm.requests) == set(ids)
    last = {}
    while llm.has_unfinished_requests():
        last |= {output.request_id: output.outputs[0].token_ids for output in llm.step()}
    assert [last[request_id] for request_id in ids] == expected


def test_of_many_prompts_the_bad_one_is_named_and_none_is_served(llm):
    with pytest.raises(InvalidRequestError, match=r"prompt 2 of 3 .*: .*token id 99"):
        llm.generate([[1], [2], [99]])
    assert not llm.has_unfinished_requests() and llm.step() == []


def test_a_request_that_just_fits_the_pool_is_served(tiny):
    llm = LLM(tiny, block_size=2, num_blocks=4)
    assert len(llm.generate([1, 2], SamplingParams(max_tokens=7, ignore_eos=True))[0].outputs[0].token_ids) == 7
    with pytest.raises(InvalidRequestError, match="takes 5 blocks of 2, but the whole pool has 4"):
        llm.generate([1, 2], SamplingParams(max_tokens=8))


def test_a_refused_request_uses_up_nobodys_random_numbers(tiny):
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    texts = []
    for bad in (False, True):
        llm = LLM(tiny, block_size=2, num_blocks=9, seed=1)
        if bad:
            with pytest.raises(InvalidRequestError):
                llm.add_request([1, 2], SamplingParams(max_tokens=50))
        texts.append(llm.generate([3, 4], params)[0].outputs[0].token_ids)
    assert texts[0] == texts[1]


def test_running_out_of_blocks_never_reaches_the_user(tiny, expected):
    try:
        tokens, _ = serve(LLM(tiny, **TIGHT))
    except OutOfBlocksError as error:
        pytest.fail(f"somebody should have been preempted: {error}")
    assert tokens == expected
