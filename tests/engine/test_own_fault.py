"""One request's fault is its own: it ends with a named error, and the others never notice."""

import os
import threading
import time

import numpy as np
import pytest

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, InvalidRequestError, KernelArgumentError
from minipage.memory import BlockPool
from minipage.sampling import SamplingParams
from minipage.scheduling import Scheduler

ON_A_GPU = os.environ.get("MINIPAGE_TEST_CUDA") == "device"
GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
WAYS = {
    "greedy": GREEDY,
    "sampled": {"seed": 1, "max_tokens": 6},
    "top_k": {"seed": 1, "max_tokens": 6, "top_k": 5, "top_p": 0.9},
    "short of its end": {"seed": 1, "max_tokens": 6, "min_tokens": 6, "stop_token_ids": (3,)},
    "samples": {"seed": 1, "max_tokens": 6, "n": 3},
    "log probabilities": GREEDY | {"logprobs": 2},
    "beams": {"max_tokens": 6, "beam_width": 2},
}
BAD = {"NaN": np.nan, "infinite": np.inf, "nothing possible": -np.inf}
POISON = 13  # a text that has this token gets bad logits from its third generated token on


def poisoned(folder, bad, **options):
    """An engine whose logits are bad after a prompt that begins with POISON."""
    llm = LLM(folder, num_blocks=64, attention="reference", **options)
    forward = llm.forward

    def poisoned_forward(plan):
        logits = forward(plan)
        logits = logits.copy() if isinstance(logits, np.ndarray) else logits.clone()
        for row, chunk in enumerate([chunk for chunk in plan.chunks if chunk.receivers]):
            if chunk.seq.token_ids[0] == POISON and chunk.seq.num_output_tokens >= 2:
                logits[row] = bad
        return logits

    llm.forward = poisoned_forward
    return llm


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_logits_that_are_no_numbers_end_their_request_and_no_other(tiny, way, bad):
    prompts = [[1, 2, 3], [POISON, 5], [4, 5]]
    expected = LLM(tiny, num_blocks=64, attention="reference").generate(prompts, SamplingParams(**way))
    llm = poisoned(tiny, bad)
    outputs = llm.generate(prompts, SamplingParams(**way))
    for output, due in zip((outputs[0], outputs[2]), (expected[0], expected[2])):
        assert [text.token_ids for text in output.outputs] == [text.token_ids for text in due.outputs]
        assert output.error is None
    failed = outputs[1]
    assert {text.finish_reason for text in failed.outputs} == {"error"} and failed.finished
    assert all(len(text.token_ids) == 2 for text in failed.outputs), "what it had before is kept"
    assert repr(failed.request_id) in failed.error and "not finite numbers" in failed.error
    assert not llm.requests and llm.block_pool.num_used == 0
    llm.scheduler.check_integrity()


def test_a_sample_that_is_done_keeps_its_end_when_another_fails(tiny):
    params = SamplingParams(n=2, seed=1, max_tokens=6, stop_token_ids=range(0, 60, 2))
    (output,) = poisoned(tiny, np.nan).generate([[POISON, 5]], params)
    reasons = [text.finish_reason for text in output.outputs]
    assert set(reasons) == {"error", "stop"}, f"one should have stopped early, and the other not: {reasons}"


def test_what_a_failed_request_has_written_is_found_by_nobody(tiny):
    llm = poisoned(tiny, np.nan, block_size=2, enable_prefix_caching=True)
    prompt = [POISON, 5, 6, 7]
    assert llm.generate([prompt], SamplingParams(**GREEDY))[0].error
    llm.generate([prompt], SamplingParams(**GREEDY))
    assert llm.scheduler.num_hit_tokens == 0


def test_huge_but_finite_logits_are_no_error(tiny):
    llm = LLM(tiny, num_blocks=64)
    forward = llm.forward
    llm.forward = lambda plan: forward(plan) * np.float32(1e35)
    for way in WAYS.values():
        assert llm.generate([[1, 2]], SamplingParams(**way))[0].error is None


@pytest.mark.parametrize("penalty", [1000.0, -1000.0, 300.0, 1e308, -1e308])
def test_any_length_penalty_ends_well(tiny, penalty):
    llm = LLM(tiny, num_blocks=64)
    params = SamplingParams(beam_width=3, max_tokens=5, length_penalty=penalty, ignore_eos=True)
    assert [len(text.token_ids) for text in llm.generate([[1, 2]], params)[0].outputs] == [5, 5, 5]


def test_a_request_that_cannot_choose_ends_and_the_others_go_on(tiny):
    llm = LLM(tiny, num_blocks=64)
    llm.add_request([1, 2], SamplingParams(beam_width=2, max_tokens=5), "beam")
    llm.add_request([1, 2], SamplingParams(**GREEDY), "other")
    llm.requests["beam"].search.advance = None  # it cannot be called
    done = {}
    while llm.has_unfinished_requests():
        done |= {output.request_id: output for output in llm.step() if output.finished}
    assert "'beam' cannot go on" in done["beam"].error and len(done["other"].outputs[0].token_ids) == 6


# ---- policies


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
@pytest.mark.parametrize("turn", range(0, 40, 3))
def test_a_policy_that_raises_loses_nobody(tiny, preemption, turn):
    calls = iter(range(10**6))

    def policy(group):
        if next(calls) in range(turn, turn + 4):  # and once more while it is mended
            raise ValueError("it was its turn")
        return -group.arrival

    options = {"block_size": 2, "num_blocks": 12, "max_model_len": 24, "preemption": preemption, "swap_space": "8KiB"}
    prompts = [[i, i + 1, i + 2] for i in range(5)]
    expected = LLM(tiny, num_blocks=64).generate(prompts, SamplingParams(**GREEDY))
    llm, done, errors = LLM(tiny, policy=policy, **options), {}, []

    def insist_on(prompt):
        try:
            llm.add_request(prompt, SamplingParams(**GREEDY), str(prompt))
        except ValueError as error:
            errors.append(error)
            assert str(prompt) not in llm.requests, "what raises has not been added"
            insist_on(prompt)

    for prompt in prompts:
        insist_on(prompt)
    while llm.has_unfinished_requests():
        try:
            done |= {output.request_id: output for output in llm.step() if output.finished}
        except ValueError as error:
            errors.append(error)
        llm.scheduler.check_integrity()
    assert errors or next(calls) <= turn
    found = [done[str(prompt)].outputs[0].token_ids for prompt in prompts]
    assert found == [output.outputs[0].token_ids for output in expected]


def test_a_policy_that_always_raises_refuses_everybody_and_says_why(tiny):
    llm = LLM(tiny, num_blocks=8, policy=lambda group: group.nothing)
    for add in (llm.add_request, llm.generate):
        with pytest.raises(AttributeError, match="nothing"):
            add([1, 2])
    assert not llm.has_unfinished_requests() and llm.step() == []


def test_when_a_policy_has_broken_for_good_requests_can_still_be_aborted(tiny):
    broken = []
    llm = LLM(tiny, num_blocks=8, policy=lambda group: 1 / (not broken))
    llm.add_request([1, 2], SamplingParams(**GREEDY), "a")
    broken.append(True)
    with pytest.raises(ZeroDivisionError):
        llm.step()
    assert llm.abort("a") and [output.outputs[0].finish_reason for output in llm.step()] == ["abort"]
    assert not llm.has_unfinished_requests()


def test_values_that_cannot_be_compared_are_refused(tiny):
    llm = LLM(tiny, num_blocks=64, policy=lambda group: None if group.arrival else 0)
    with pytest.raises(TypeError):
        llm.generate([[1], [2]], SamplingParams(**GREEDY))
    assert not llm.requests
    assert llm.block_pool.num_used == 0


def test_a_part_that_calls_the_engine_from_inside_a_step_is_told_so(tiny):
    llm = LLM(tiny, num_blocks=8, policy=lambda group: llm.step())
    with pytest.raises(ConfigurationError, match="in the middle of a step"):
        llm.generate([[1, 2]])
    assert not llm.requests


# ---- a batch is all or nothing


class Strange:
    def __iter__(self):
        raise ZeroDivisionError("a prompt of this kind")


@pytest.mark.parametrize("bad", [None, {"max_tokens": 4}, 7, "params"], ids=str)
def test_of_a_batch_with_parameters_that_are_none_nobody_is_served(tiny, bad):
    llm = LLM(tiny, num_blocks=8)
    params = [SamplingParams(**GREEDY), bad if bad is not None else SamplingParams(max_tokens=10_000)]
    try:
        llm.generate([[1], [2]], params)
    except InvalidRequestError as error:
        assert "prompt 1 of 2" in str(error)
    else:
        assert bad is None, "such a thing was taken for parameters"
    assert not llm.has_unfinished_requests() and llm.step() == []


def test_of_a_batch_with_a_prompt_that_raises_nobody_is_served(tiny):
    llm = LLM(tiny, num_blocks=8)
    with pytest.raises(ZeroDivisionError):
        llm.generate([[1, 2], Strange()], SamplingParams(**GREEDY))
    assert not llm.has_unfinished_requests() and llm.step() == []


def test_a_refused_batch_uses_up_nobodys_random_numbers_and_recomputes_nobody(tiny):
    texts = []
    for bad in (False, True):
        llm = LLM(tiny, block_size=2, num_blocks=9, seed=1)
        llm.add_request([5, 6, 7], SamplingParams(**GREEDY), "first")
        llm.step()
        if bad:
            with pytest.raises(InvalidRequestError, match="prompt 1 of 2"):
                llm.generate([[1, 2], [1, 2]], [SamplingParams(max_tokens=3), SamplingParams(max_tokens=50)])
            assert llm.requests["first"].group.leader.num_computed_tokens == 3, "the others were not disturbed"
        texts.append(llm.generate([[3, 4]], SamplingParams(max_tokens=8, ignore_eos=True))[0].outputs[0].token_ids)
    assert texts[0] == texts[1]


# ---- names, pools, numbers


@pytest.mark.parametrize("name", [["a"], 7, b"a", ("a",), {"a": 1}], ids=str)
def test_a_request_id_is_a_string(tiny, name):
    llm = LLM(tiny, num_blocks=8)
    with pytest.raises(InvalidRequestError, match="request_id"):
        llm.add_request([1, 2], request_id=name)


def test_the_id_of_an_aborted_request_is_free_at_once(tiny):
    llm = LLM(tiny, num_blocks=8)
    llm.add_request([1, 2], SamplingParams(**GREEDY), "a")
    llm.step()
    llm.abort("a")
    llm.add_request([1, 2], SamplingParams(**GREEDY), "a")
    reasons = []
    while llm.has_unfinished_requests():
        reasons += [output.outputs[0].finish_reason for output in llm.step() if output.finished]
    assert reasons == ["abort", "length"]


def test_a_pool_serves_one_engine(tiny):
    pool = BlockPool(8)
    first = LLM(tiny, block_pool=pool, enable_prefix_caching=True)
    for make in (
        lambda: LLM(tiny, block_pool=pool),
        lambda: Scheduler(pool),
        lambda: Scheduler(BlockPool(8), swap_pool=pool),
    ):
        with pytest.raises(ConfigurationError, match="serves another Scheduler"):
            make()
    assert first.generate([[1, 2]], SamplingParams(**GREEDY))[0].finished
    del first
    assert LLM(tiny, block_pool=pool).generate([[1, 2]], SamplingParams(**GREEDY))[0].finished


def test_more_samples_than_the_model_has_tokens(tiny):
    (output,) = LLM(tiny, num_blocks=128, max_num_seqs=80).generate(
        [[1, 2]], SamplingParams(n=70, seed=1, max_tokens=2)
    )
    assert len(output.outputs) == 70


@pytest.mark.parametrize("way", [{"n": 1}, {"n": 2}, {"n": 4}, {"beam_width": 3}], ids=str)
@pytest.mark.parametrize("num_prompt_tokens", [1, 4, 7])
def test_without_max_tokens_several_texts_share_the_pool(tiny, way, num_prompt_tokens):
    llm = LLM(tiny, block_size=2, num_blocks=16)
    params = SamplingParams(max_tokens=None, ignore_eos=True, **way)
    (output,) = llm.generate([[1] * num_prompt_tokens], params)
    shared, width = num_prompt_tokens // 2, way.get("n") or way["beam_width"]
    longest = (shared + (16 - shared) // width) * 2 + 1 - num_prompt_tokens
    assert [len(text.token_ids) for text in output.outputs] == [longest] * width


# ---- threads


def test_several_threads_use_one_engine_and_each_gets_its_own(tiny):
    llm = LLM(tiny, block_size=2, num_blocks=40)
    prompts = [[i, i + 1] for i in range(6)]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
    wrong = []

    def work(i):
        try:
            for _ in range(3):
                if llm.generate([prompts[i]], params)[0].outputs[0].token_ids != expected[i]:
                    wrong.append(f"another text in thread {i}")
                *_, last = llm.stream([prompts[i]], params)
                if last.outputs[0].token_ids != expected[i]:
                    wrong.append(f"another stream in thread {i}")
                llm.abort(llm.add_request(prompts[i], params))
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    llm.step()
    assert not llm.has_unfinished_requests() and llm.block_pool.num_used == 0
    llm.scheduler.check_integrity()


# ---- what a stranger tried


def test_a_scheduler_serves_one_engine(tiny):
    scheduler = Scheduler(BlockPool(8))
    first = LLM(tiny, scheduler=scheduler)
    with pytest.raises(ConfigurationError, match="serves another LLM"):
        LLM(tiny, scheduler=scheduler)
    assert first.generate([[1, 2]], SamplingParams(**GREEDY))[0].finished


def test_a_pool_with_blocks_in_use_is_refused(tiny):
    pool = BlockPool(8)
    pool.allocate_many(3)
    with pytest.raises(ConfigurationError, match="3 blocks in use"):
        LLM(tiny, block_pool=pool)


def test_a_stream_that_is_closed_in_the_middle_of_a_step_is_ended_with_the_next(tiny):
    """The garbage collector may do so at any time."""
    llm = LLM(tiny, num_blocks=32)
    stream = llm.stream([[1, 2]], SamplingParams(max_tokens=40, temperature=0, ignore_eos=True))
    next(stream)
    forward = llm.forward

    def closing(plan):
        stream.close()
        return forward(plan)

    llm.forward = closing
    llm.add_request([3, 4], SamplingParams(**GREEDY), "other")
    llm.step()
    llm.forward = forward
    while llm.has_unfinished_requests():
        assert [output.request_id for output in llm.step()] == ["other"]
        assert list(llm.requests) in (["other"], [])
    assert llm.block_pool.num_used == 0


OTHER_SHAPES = {"a row": lambda out: out[:1], "a head": lambda out: out[:, :1], "a column": lambda out: out[:, :, :1]}
if not ON_A_GPU:  # where the tests hand on arrays only
    OTHER_SHAPES |= {"a number": lambda out: out[0, 0, 0], "nothing": lambda out: None}


@pytest.mark.parametrize("shape", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_attention_of_another_shape_is_named(tiny, shape):
    from minipage.attention import reference

    llm = LLM(tiny, num_blocks=8, attention=lambda *args: shape(reference.paged_attention(*args)))
    with pytest.raises(KernelArgumentError, match="the attention function returned"):
        llm.generate([[1, 2, 3]])
    assert not llm.requests


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"watermark": "0.1"}, "watermark"),
        ({"watermark": None}, "watermark"),
        ({"watermark": float("nan")}, "watermark"),
        ({"watermark": 10**400}, "watermark"),
        ({"policy": []}, "policy"),
        ({"attention": []}, "attention"),
        ({"kv_cache_dtype": []}, "kv_cache_dtype"),
        ({"num_blocks": 10**15}, "num_blocks"),
        ({"num_blocks": 10**30}, "num_blocks"),
        ({"num_blocks": 10**400}, "num_blocks"),
        ({"block_size": 10**12}, "Lower .*block_size"),
    ],
    ids=str,
)
def test_settings_of_another_kind_are_named(tiny, options, words):
    with pytest.raises(ConfigurationError, match=words):
        LLM(tiny, **{"num_blocks": 8, **options})


class NotWritten:
    def __repr__(self):
        raise ValueError


UNWIELDY = {"an array": np.zeros((2, 2)), "a long text": "x" * 10_000, "what raises when it is written": NotWritten()}


@pytest.mark.parametrize("value", UNWIELDY.values(), ids=UNWIELDY)
def test_whatever_is_refused_the_sentence_is_one_short_line(tiny, value):
    def attempts():
        llm = LLM(tiny, num_blocks=8)
        yield lambda: llm.generate([[value]])
        yield lambda: llm.generate([[1, 2]], [value])
        yield lambda: llm.add_request([1], priority=value)
        yield lambda: llm.add_request([1], request_id=[value])
        yield lambda: LLM(tiny, max_model_len=value)
        for options in {"watermark": value}, {"block_size": value}, {"preemption": [value]}:
            yield lambda options=options: LLM(tiny, num_blocks=8, **options)
        yield lambda: LLM(tiny, num_blocks=8, kv_cache_dtype=[value])

    for attempt in attempts():
        with pytest.raises((ConfigurationError, InvalidRequestError)) as error:
            attempt()
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("params", [5, SamplingParams, 2.5], ids=str)
def test_what_are_no_parameters_is_said(tiny, params):
    with pytest.raises(InvalidRequestError, match="params"):
        LLM(tiny, num_blocks=8).generate([[1, 2]], params)


@pytest.mark.skipif(not hasattr(os, "fork") or ON_A_GPU, reason="no fork here, or no GPU after one")
def test_a_child_that_is_forked_in_the_middle_of_a_step_of_another_thread_goes_on(tiny):
    llm = LLM(tiny, num_blocks=32, attention="reference")
    expected = llm.generate([[1, 2]], SamplingParams(**GREEDY))[0].outputs[0].token_ids
    inside, go_on = threading.Event(), threading.Event()
    forward = llm.forward

    def slow(plan):
        inside.set()
        go_on.wait(20)
        return forward(plan)

    llm.forward = slow
    thread = threading.Thread(target=llm.generate, args=([[3, 4]], SamplingParams(**GREEDY)))
    thread.start()
    inside.wait(20)
    child = os.fork()
    if child == 0:
        right = False
        try:
            llm.forward = forward
            right = llm.generate([[1, 2]], SamplingParams(**GREEDY))[0].outputs[0].token_ids == expected
        finally:
            os._exit(0 if right else 1)
    go_on.set()
    thread.join()
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child, 9)
    assert ended == (child, 0), "the child waits for a thread that has not come along, or says something else"


def test_a_stream_hears_of_its_end_while_another_thread_makes_the_step(tiny):
    """Between the last token and its news another thread is in the middle of the step: that is to be waited for."""
    llm = LLM(tiny, num_blocks=32)
    stream = llm.stream([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=2, ignore_eos=True))
    assert not next(stream).finished
    tell, is_inside = llm._tell, threading.Event()

    def slowly(*news):
        is_inside.set()
        time.sleep(0.2)
        tell(*news)

    llm._tell = slowly
    thread = threading.Thread(target=llm.step)
    thread.start()
    is_inside.wait()
    assert [output.finished for output in stream] == [True]
    thread.join()
