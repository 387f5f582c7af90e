"""Requests in, results out: generate, stream, step and abort, in any order, lose nothing and mix nothing up."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, InvalidRequestError, ModelError
from minipage.memory import BlockPool, BlockTable
from minipage.sampling import SamplingParams
from minipage.scheduling import Scheduler


def greedy(max_tokens, **others):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **others)


def run(llm):
    """Step until nothing is left; the last output of each request, by id."""
    last = {}
    while llm.has_unfinished_requests():
        for output in llm.step():
            assert output.request_id not in last or not last[output.request_id].finished, "told twice that it finished"
            last[output.request_id] = output
    return last


def assert_empty(llm):
    llm.scheduler.check_integrity()
    assert llm.block_pool.num_free == llm.block_pool.num_blocks, "blocks are in use, but no request is left"
    assert not llm.has_unfinished_requests() and llm.step() == []


# ---- generate


def test_generate_returns_the_texts_in_the_order_of_the_prompts(llm, dense, make_prompt):
    prompts = [make_prompt(i, length=12 - i) for i in range(5)]
    outputs = llm.generate(prompts, [greedy(3 + i) for i in range(5)])  # they finish in another order
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [o.outputs[0].token_ids for o in outputs] == [dense.greedy(p, 3 + i) for i, p in enumerate(prompts)]
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)
    assert_empty(llm)


def test_one_prompt_may_be_given_without_a_list(llm):
    by_list = llm.generate([[1, 2, 3]], greedy(4))[0].outputs
    assert llm.generate([1, 2, 3], greedy(4))[0].outputs == by_list
    assert llm.generate(np.array([1, 2, 3]), greedy(4))[0].outputs == by_list
    assert llm.generate(np.array([[1, 2, 3], [4, 5, 6]]), greedy(4))[0].outputs == by_list


def test_no_prompts_make_no_outputs(llm):
    assert llm.generate([]) == [] and list(llm.stream([])) == []


def test_without_parameters_sixteen_tokens_are_drawn(llm):
    output = llm.generate([1, 2])[0].outputs[0]
    assert len(output.token_ids) == 16 or output.finish_reason == "stop"
    assert output.logprobs is None and output.cumulative_logprob is None and output.text == ""


def test_as_many_parameters_as_prompts_are_needed(llm):
    with pytest.raises(InvalidRequestError, match="3 SamplingParams"):
        llm.generate([[1], [2]], [greedy(1)] * 3)


# ---- streaming


def test_a_stream_yields_every_token_once_and_ends_with_what_generate_returns(llm, make_prompt):
    prompts = [make_prompt(i) for i in range(3)]
    seen = {}
    for output in llm.stream(prompts, greedy(7)):
        seen.setdefault(output.request_id, []).append(output)
    assert len(seen) == 3
    for outputs, expected in zip(seen.values(), llm.generate(prompts, greedy(7)), strict=True):
        assert [len(o.outputs[0].token_ids) for o in outputs] == [1, 2, 3, 4, 5, 6, 7]
        assert all(o.outputs[0].token_ids == expected.outputs[0].token_ids[:n] for n, o in enumerate(outputs, 1))
        assert [o.finished for o in outputs] == [False] * 6 + [True]
        assert outputs[-1].outputs == expected.outputs
    assert_empty(llm)


def test_closing_a_stream_aborts_what_it_asked_for_and_nothing_else(llm, dense, make_prompt):
    other = llm.add_request(make_prompt(9), greedy(6))
    stream = llm.stream([make_prompt(0), make_prompt(1)], greedy(20))
    next(stream)
    stream.close()
    assert set(llm.requests) == {other}
    assert run(llm)[other].outputs[0].token_ids == dense.greedy(make_prompt(9), 6)
    assert_empty(llm)


reader = st.sampled_from(["first stream", "second stream", "step"])


@settings(max_examples=settings.default.max_examples // 2)
@given(st.lists(reader, max_size=25), st.integers(4, 10))
@example(["first stream", "step", "step", "step"], 10)
@example(["first stream", "second stream", "second stream", "second stream", "step"], 10)
def test_readers_taking_turns_each_get_their_own_and_all_of_it(tiny, dense, make_prompt, turns, num_blocks):
    """Two streams and step() pull on one engine. Whoever pulls moves everybody, but takes only what it asked for."""
    llm = LLM(tiny, block_size=2, num_blocks=num_blocks, attention="reference")
    prompts = {"first stream": [[1, 2], [3]], "second stream": [[4], [5, 6]], "step": [[7, 8], [9]]}
    streams = {name: llm.stream(prompts[name], greedy(4)) for name in ("first stream", "second stream")}
    for prompt in prompts["step"]:
        llm.add_request(prompt, greedy(4))
    got = {name: [] for name in prompts}
    for name in [*turns, "first stream", "second stream", *["step"] * 100]:
        if name == "step":
            got[name] += llm.step()
        else:
            got[name] += [output] if (output := next(streams[name], None)) else []
    for name, stream in streams.items():
        got[name] += stream
    while llm.has_unfinished_requests():
        got["step"] += llm.step()
    for name, outputs in got.items():
        assert [p for p in prompts[name] if p not in [o.prompt_token_ids for o in outputs]] == [], f"{name} lost one"
        assert all(o.prompt_token_ids in prompts[name] for o in outputs), f"{name} got what was not meant for it"
        for prompt in prompts[name]:
            lengths = [len(o.outputs[0].token_ids) for o in outputs if o.prompt_token_ids == prompt]
            assert lengths == sorted(set(lengths)), f"{name} was told the same twice: {lengths} tokens"
            last = [o for o in outputs if o.prompt_token_ids == prompt][-1]
            assert last.finished and last.outputs[0].token_ids == dense.greedy(prompt, 4)
    assert_empty(llm)


def test_what_was_seen_does_not_change_later(llm):
    outputs = list(llm.stream([[1, 2, 3]], greedy(5, logprobs=1)))
    assert [len(output.outputs[0].logprobs) for output in outputs] == [1, 2, 3, 4, 5]
    assert [output.metrics.finished_time is None for output in outputs] == [True] * 4 + [False]


# ---- abort


@pytest.mark.parametrize("steps", range(10))
@pytest.mark.parametrize("victim", range(4))
def test_a_request_may_be_aborted_in_any_state(tiny, dense, make_prompt, steps, victim):
    """Four requests, three seats, chunked prompts, a pool that preempts: after each step some wait, and some run."""
    llm = LLM(tiny, block_size=2, num_blocks=14, max_num_seqs=3, max_num_batched_tokens=7, attention="reference")
    prompts = [make_prompt(i, length=8) for i in range(4)]
    ids = [llm.add_request(prompt, greedy(9)) for prompt in prompts]
    for _ in range(steps):
        llm.step()
    before = llm.requests[ids[victim]].output().outputs[0].token_ids
    assert llm.abort(ids[victim]) is True
    assert llm.abort(ids[victim]) is False, "it was aborted twice"
    llm.scheduler.check_integrity()
    last = run(llm)
    aborted = last.pop(ids[victim])
    assert aborted.finished and aborted.outputs[0].finish_reason == "abort"
    assert aborted.outputs[0].token_ids == before == dense.greedy(prompts[victim], 9)[: len(before)]
    for i, request_id in enumerate(ids):
        if i != victim:
            assert last[request_id].outputs[0].token_ids == dense.greedy(prompts[i], 9)
    assert_empty(llm)


def test_aborting_what_is_unknown_or_finished_says_so(llm):
    assert llm.abort("nobody") is False
    request_id = llm.add_request([1], greedy(1))
    run(llm)
    assert llm.abort(request_id) is False


@pytest.mark.parametrize("as_given", [list, tuple, set, iter, np.array], ids=lambda kind: kind.__name__)
def test_several_requests_are_aborted_at_once_and_no_other(tiny, dense, as_given):
    llm = LLM(tiny, num_blocks=20, attention="reference")
    ids = [llm.add_request([i + 1], greedy(5)) for i in range(4)]
    llm.step()
    assert llm.abort(as_given([ids[2], "nobody", ids[0], ids[2]])) is True
    assert llm.abort([ids[0], ids[2]]) is llm.abort([]) is False
    last = run(llm)
    assert [last[name].outputs[0].finish_reason for name in ids] == ["abort", "length", "abort", "length"]
    assert last[ids[3]].outputs[0].token_ids == dense.greedy([4], 5)
    assert_empty(llm)


def test_what_is_no_request_id_cannot_be_aborted_and_nothing_is(llm):
    request_id = llm.add_request([1], greedy(2))
    for wrong in (
        0,
        None,
        [0],
        [[request_id]],
        [request_id, None],
        {"a": 1}.values(),
        np.array(5),
        b"0",
        {1: request_id},
    ):
        with pytest.raises(InvalidRequestError, match=r"^request_id is .*; it must be a string, or a list of strings"):
            llm.abort(wrong)
    assert run(llm)[request_id].outputs[0].finish_reason == "length"


def test_a_stream_is_told_when_its_request_is_aborted(llm):
    stream = llm.stream([[1], [2]], greedy(9))
    first = next(stream)
    llm.abort(first.request_id)
    rest = list(stream)
    assert [o.outputs[0].finish_reason for o in rest if o.request_id == first.request_id] == ["abort"]
    assert [o.finished for o in rest if o.request_id != first.request_id] == [False] * 8 + [True]


# ---- request ids


def test_two_requests_under_one_id_are_refused(llm, dense):
    llm.add_request([1, 2], greedy(3), request_id="a")
    with pytest.raises(InvalidRequestError, match="there is a request 'a' already"):
        llm.add_request([3], request_id="a")
    assert run(llm)["a"].outputs[0].token_ids == dense.greedy([1, 2], 3)
    assert llm.add_request([3], request_id="a") == "a", "an id is free again when its request is done"


def test_an_id_given_by_hand_never_takes_the_news_of_another(llm, dense):
    llm.add_request([1, 2], greedy(3), request_id="0")
    llm.abort("0")  # nobody has been told yet
    output = llm.generate([3, 4], greedy(3))[0]
    assert output.prompt_token_ids == [3, 4] and output.outputs[0].token_ids == dense.greedy([3, 4], 3)
    assert [o.prompt_token_ids for o in llm.step()] == [[1, 2]], "nobody was ever told of the abort"


# ---- timing


def test_times_are_in_order_and_preemptions_counted(tiny):
    llm = LLM(tiny, block_size=2, num_blocks=8, attention="reference")
    outputs = llm.generate([[1, 2], [3, 4], [5, 6]], greedy(12))
    for output in outputs:
        m = output.metrics
        assert m.arrival_time <= m.first_scheduled_time <= m.first_token_time < m.finished_time
    assert outputs[0].metrics.num_preemptions == 0 < outputs[2].metrics.num_preemptions
    waiting = llm.add_request([1])
    llm.abort(waiting)
    (output,) = llm.step()
    assert output.metrics.first_scheduled_time is None and output.metrics.first_token_time is None
    assert output.metrics.finished_time >= output.metrics.arrival_time


# ---- configuration


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"block_size": -4}, "block_size is -4"),
        ({"block_size": 1.5, "num_blocks": 4}, r"block_size is 1\.5"),
        ({"num_blocks": 0}, "num_blocks is 0"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 0}, "max_num_batched_tokens is 0"),
        ({"max_model_len": 1}, "max_model_len is 1"),
        ({"max_model_len": 65}, "max_model_len is 65.*64"),
        ({"memory": "4095"}, "too small for one block.*4,096 bytes"),
        ({"memory": 0}, "too small for one block"),
        ({"memory": "lots"}, "memory is 'lots'.*such as '512MiB'"),
        ({"memory": "-1GB"}, "memory is '-1GB'"),
        ({"memory": ""}, "memory is ''"),
        ({"memory": True}, "memory is True"),
        ({"arrays": "jax"}, "arrays is 'jax'"),
        ({"attention": "cuda9"}, "attention is 'cuda9'"),
        ({"scheduler": "priority"}, "scheduler is 'priority'; it must be a scheduler"),
        ({"block_pool": 64}, "block_pool is 64; it must be a block pool"),
        ({"block_table": None}, "block_table is None; it must be a class"),
        ({"progress": True}, "progress is True; it must be a function"),
    ],
    ids=str,
)
def test_a_bad_option_is_named_with_its_value(tiny, options, words):
    with pytest.raises(ConfigurationError, match=words):
        LLM(tiny, **options)


def test_more_blocks_than_any_lists_can_name_are_refused_before_the_memory_is_full(tiny, monkeypatch):
    made = []
    monkeypatch.setattr("minipage.engine.build.BlockPool", lambda *sizes: made.append(sizes))
    for num_blocks in 2**40, 10**30:
        with pytest.raises(ConfigurationError, match=r"num_blocks asks for .* blocks, which no memory can hold"):
            LLM(tiny, num_blocks=num_blocks)
    assert not made


@pytest.mark.parametrize(
    ("memory", "num_bytes"),
    [("1MiB", 2**20), ("1.5MB", 1_500_000), ("64 kib", 2**16), ("40KB", 40_000), (123_456, 123_456), ("9000b", 9000)],
)
def test_memory_is_turned_into_as_many_blocks_as_fit(tiny, memory, num_bytes):
    llm = LLM(tiny, memory=memory)
    assert llm.kv_cache.nbytes <= num_bytes < llm.kv_cache.nbytes * (1 + 1 / llm.block_pool.num_blocks)
    assert llm.kv_cache.nbytes == llm.block_pool.num_blocks * 4096  # 2 x 2 layers x 16 tokens x 16 numbers x 4 bytes


def test_parts_of_your_own_are_used(tiny, dense):
    pool = BlockPool(9, block_size=3)
    assert LLM(tiny, block_pool=pool).block_pool is pool
    scheduler = Scheduler(pool, max_num_seqs=1)
    llm = LLM(tiny, scheduler=scheduler, block_table=type("OwnTable", (BlockTable,), {}))
    assert llm.scheduler is scheduler and llm.block_pool is pool
    assert llm.generate([1, 2], greedy(5))[0].outputs[0].token_ids == dense.greedy([1, 2], 5)


def test_an_unknown_model_is_a_model_error():
    with pytest.raises(ModelError, match="there is no folder"):
        LLM("./no/such/model")


@pytest.mark.parametrize(
    "option",
    [
        {"num_blocks": 9}, {"memory": "1MiB"}, {"block_size": 8}, {"block_pool": BlockPool(9, 4)}, {"max_num_seqs": 3},
        {"max_num_batched_tokens": 99}, {"enable_prefix_caching": True}, {"preemption": "swap"}, {"swap_space": 0},
        {"policy": "priority"}, {"watermark": 0.5},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_options_that_a_scheduler_of_ones_own_would_override_are_refused(tiny, option):
    with pytest.raises(ConfigurationError, match=f"{next(iter(option))} would have no effect"):
        LLM(tiny, scheduler=Scheduler(BlockPool(50, 4)), **option)


@pytest.mark.parametrize("option", [{"num_blocks": 9}, {"memory": "1MiB"}, {"block_size": 8}])
def test_so_are_those_that_a_pool_of_ones_own_would(tiny, option):
    with pytest.raises(ConfigurationError, match="the block_pool that is handed in"):
        LLM(tiny, block_pool=BlockPool(50, 4), **option)


def test_a_scheduler_that_is_a_class_is_made_with_all_that_the_options_say(tiny):
    class Mine(Scheduler):
        pass

    options = {"num_blocks": 30, "block_size": 4, "max_num_seqs": 5, "preemption": "swap", "swap_space": "1MiB"}
    llm = LLM(tiny, scheduler=Mine, enable_prefix_caching=True, watermark=0.1, **options)
    theirs, ours = llm.scheduler, LLM(tiny, enable_prefix_caching=True, watermark=0.1, **options).scheduler
    assert type(theirs) is Mine
    for name in ("max_num_seqs", "max_num_batched_tokens", "preemption", "watermark_blocks", "policy"):
        assert getattr(theirs, name) == getattr(ours, name)
    assert theirs.block_pool.num_blocks == 30 and theirs.prefix_cache.pool is theirs.block_pool
    assert theirs.swap_pool.num_blocks == ours.swap_pool.num_blocks
    assert llm.generate([1, 2], greedy(5))[0].finished
