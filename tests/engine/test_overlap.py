"""Steps that overlap say what plain steps say, however texts end, and whatever happens on the way."""

import gc
import inspect
from dataclasses import replace

import numpy as np
import pytest
from engine.checkpoints import VOCAB, every_model
from engine.engine_machine import machine
from engine.guessing import Knowing, SameModel
from engine.overlapping import OverlapMachine
from engine.raise_anywhere import Boom, Lines, RandomLines, ways
from engine.raise_anywhere import serve as insist_on
from engine.test_speculation import ENGINES, WAYS, programs
from hypothesis.stateful import run_state_machine_as_test as run

from minipage import LLM, SamplingParams
from minipage.engine.request import Request
from minipage.errors import ConfigurationError

NUM_TOKENS = 17


@pytest.fixture(scope="module")
def prompts(make_prompt):
    first = make_prompt(0, 9)
    return [first, [*first[:5], 1, 2], make_prompt(1, 3)]


def greedy(max_tokens, **others):
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, **others)


def overlapping(folder, **options):
    return LLM(folder, **({"block_size": 4, "num_blocks": 64, "async_scheduling": True} | options))


def watch(llm):
    """How many steps were launched while another had not come to its end, which a list tells from now on."""
    launch, launched = llm.overlap._launch, []
    llm.overlap._launch = lambda *step: launched.append(llm.overlap._flying is not None) or launch(*step)
    return launched


def serve(llm, prompts, params, look=lambda: None):
    """What everybody was told at last; after each step everything is accounted for."""
    each = params if isinstance(params, list) else [params] * len(prompts)
    ids = [llm.add_request(prompt, params) for prompt, params in zip(prompts, each, strict=True)]
    done = {}
    while llm.has_unfinished_requests():
        done |= {output.request_id: output for output in llm.step() if output.finished}
        llm.scheduler.check_integrity()
        look()
    assert llm.block_pool.num_used == 0
    return [
        [(text.token_ids, text.finish_reason, text.stop_reason, text.text) for text in done[i].outputs] for i in ids
    ]


PAIRS = [
    pytest.param(way, engine, marks=[] if engine == "calm" or way in ("n=3", "stop tokens") else pytest.mark.slow)
    for way in WAYS
    for engine in ENGINES
]


@pytest.mark.parametrize(("way", "engine"), PAIRS)
def test_texts_are_those_of_plain_steps(tiny, prompts, way, engine):
    options = {"block_size": 4, "num_blocks": 64} | ENGINES[engine]
    params = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, **WAYS[way])
    plain, llm = LLM(tiny, **options), overlapping(tiny, **options)
    launched = watch(llm)
    assert serve(llm, prompts, params) == serve(plain, prompts, params)
    is_suited = way in ("greedy", "seeded", "n=3", "stop tokens") and "min_tokens" not in WAYS[way]
    assert any(launched) == is_suited
    count = {
        name: number for name, number in llm.stats().items() if name.endswith("_tokens") and isinstance(number, int)
    }
    assert count == {name: plain.stats()[name] for name in count}


@every_model
def test_every_model(tiny, make_prompt):
    prompts = [make_prompt(i, 5 + i) for i in range(4)]
    llm = overlapping(tiny)
    launched = watch(llm)
    assert serve(llm, prompts, greedy(12)) == serve(LLM(tiny, num_blocks=64), prompts, greedy(12))
    assert launched == [False, *[True] * 11]


@pytest.mark.parametrize("max_tokens", range(1, 10))
def test_a_text_that_ends_by_its_length_has_no_surplus(tiny, make_prompt, max_tokens):
    """And takes no block more: the pool is just large enough."""
    prompts = [make_prompt(0, 6), make_prompt(1, 5)]
    options = {"block_size": 2, "num_blocks": 2 * -(-(6 + max_tokens - 1) // 2), "max_model_len": 6 + max_tokens}
    llm = overlapping(tiny, **options)
    params = [greedy(max_tokens), greedy(max(1, max_tokens - 3))]
    assert serve(llm, prompts, params) == serve(LLM(tiny, **options), prompts, params)
    assert llm.overlap.num_surplus == 0
    assert llm.stats()["vllm:num_preemptions"] == 0


@pytest.mark.parametrize("place", range(1, 9))
def test_a_stop_token_is_seen_one_step_late_and_its_surplus_dropped(tiny, make_prompt, place):
    prompts = [make_prompt(0, 6), make_prompt(1, 3)]
    whole = serve(LLM(tiny, num_blocks=64), prompts, greedy(12))
    said = whole[0][0][0]
    params = [SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(said[place],)), greedy(12)]
    for block_size in (1, 2, 3):
        llm = overlapping(tiny, block_size=block_size, enable_prefix_caching=True)
        assert serve(llm, prompts, params) == serve(LLM(tiny, num_blocks=64), prompts, params)
        assert llm.overlap.num_surplus == (said.index(said[place]) < 11)
        known = [*prompts[0], *said[: said.index(said[place]) + 1]]
        cached = llm.scheduler.prefix_cache.find([*known, 0, 0, 0]).blocks
        assert len(cached) == (len(known) - 1) // block_size, "what was written, except for the surplus"


@pytest.mark.parametrize("place", range(2, 14, 3))
def test_a_stop_string_on_every_boundary(talker, place):
    options = {"block_size": 2, "num_blocks": 64}
    [[(_, _, _, text)]] = serve(LLM(talker, **options), [[5, 6, 7]], greedy(20))
    stop = text[place : place + 2]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop=[stop])
    assert serve(overlapping(talker, **options), [[5, 6, 7]] * 2, params) == serve(
        LLM(talker, **options), [[5, 6, 7]] * 2, params
    )


def test_abort_while_a_step_is_in_flight(tiny, make_prompt):
    llm = overlapping(tiny)
    texts = serve(LLM(tiny, num_blocks=64), [make_prompt(i, 4) for i in range(3)], greedy(9))
    ids = [llm.add_request(make_prompt(i, 4), greedy(9)) for i in range(3)]
    done = {}
    for number in range(20):
        if number == 4:
            assert llm.abort(ids[1])
        done |= {output.request_id: output.outputs[0] for output in llm.step() if output.finished}
        llm.scheduler.check_integrity()
    assert [done[i].token_ids for i in (ids[0], ids[2])] == [texts[0][0][0], texts[2][0][0]]
    assert done[ids[1]].finish_reason == "abort"
    assert texts[1][0][0][:3] == done[ids[1]].token_ids[:3] and len(done[ids[1]].token_ids) < 9
    assert llm.block_pool.num_used == 0 and llm.overlap.num_surplus == 1


def broken_wait(*_):
    return lambda: 1 / 0


@pytest.mark.parametrize("phase", ["copy", "batches", "compute", "wait"])
def test_a_failing_step_loses_nothing(tiny, make_prompt, monkeypatch, phase):
    prompts = [make_prompt(i, 5) for i in range(3)]
    expected = serve(LLM(tiny, num_blocks=64), prompts, greedy(12))
    llm, steps = overlapping(tiny), 0

    def look():
        nonlocal steps
        steps += 1
        if steps in (1, 2, 5):
            with monkeypatch.context() as patch:
                if phase == "wait":
                    patch.setattr(llm.overlap, "_launch", broken_wait)
                    llm.overlap._flying = llm.overlap._flying and replace(llm.overlap._flying, wait=broken_wait())
                else:
                    patch.setattr(llm.runner, phase, lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    llm.step()

    assert serve(llm, prompts, greedy(12), look) == expected


def test_logits_that_are_no_numbers_end_their_request_alone(tiny, make_prompt):
    prompts = [make_prompt(i, 5) for i in range(3)]
    expected = serve(LLM(tiny, num_blocks=64), prompts, greedy(12))
    llm = overlapping(tiny, enable_prefix_caching=True)
    compute, steps = llm.runner.compute, []

    def broken(batches):
        if not hasattr(llm.runner, "launch"):  # otherwise they are put there on the device
            assert (batches[0].token_ids >= 0).all(), "also where none could be drawn"
        logits = compute(batches) + 0
        steps.append(1)
        if len(steps) == 5:
            logits[1] = np.nan
        return logits

    llm.runner.compute = broken
    found = serve(llm, prompts, greedy(12))
    assert [found[0], found[2]] == [expected[0], expected[2]]
    [(token_ids, reason, _, _)] = found[1]
    assert (token_ids, reason) == (expected[1][0][0][:4], "error")
    assert llm.overlap.num_surplus == 1


def test_what_only_the_host_can_draw_is_computed_again(tiny, make_prompt):
    """A device may find that it cannot tell; from then on that request's steps are plain ones."""
    for n in (1, 3):
        prompts, params = (
            [make_prompt(i, 5) for i in range(3)],
            SamplingParams(seed=3, n=n, max_tokens=12, ignore_eos=True),
        )
        llm = overlapping(tiny, enable_prefix_caching=True)
        launch = llm.overlap._launch
        steps = []

        def unsure(plan, draws, launch=launch, steps=steps, n=n):
            steps.append(1)
            wait, is_it = launch(plan, draws), len(steps) == 4
            return lambda: [None if is_it and i == n else token for i, token in enumerate(wait())]

        llm.overlap._launch = unsure
        assert serve(llm, prompts, params) == serve(LLM(tiny, num_blocks=64), prompts, params)
        assert len(steps) == 5, "and then they were plain"


def test_others_come_and_go_and_steps_overlap_again(tiny, make_prompt):
    """A beam search makes plain steps of all, as long as it is there."""
    llm, plain = overlapping(tiny), LLM(tiny, num_blocks=64)
    launched = watch(llm)
    params = [greedy(30), SamplingParams(beam_width=2, max_tokens=6), greedy(9, logprobs=1)]
    prompts = [make_prompt(i, 5) for i in range(3)]
    assert serve(llm, prompts, params) == serve(plain, prompts, params)
    assert 15 < len(launched) < 25


def test_steps_overlap_as_long_as_guesses_are_wrong(tiny, make_prompt):
    """Then nothing is computed in vain, either. In steps with drafts, the last tokens have to be known."""
    prompt = make_prompt(0, 8)
    expected = serve(LLM(tiny, num_blocks=64), [prompt], greedy(25))
    known = prompt + expected[0][0][0]
    ways = {"wrong": lambda place: True, "right": lambda place: False, "by turns": lambda place: place % 12 < 6}
    found = {}
    for way, is_wrong in ways.items():
        llm = overlapping(tiny, speculative_config={"num_speculative_tokens": 3, "only_if_quicker": False})
        llm.speculation.proposer = Knowing([known], is_wrong)
        launched = watch(llm)
        assert serve(llm, [prompt], greedy(25)) == expected
        found[way] = sum(launched), sum(llm.speculation.num_accepted)
    assert found["wrong"][0] > 20 and found["wrong"][1] == 0
    assert found["right"][0] < 4 and found["right"][1] > 14
    assert found["wrong"][0] > found["by turns"][0] > 6 and found["by turns"][1] > 4


@pytest.mark.parametrize("tiny", ["gpt2", "hybrid"], indirect=True)
def test_drafts_that_are_due_wait_for_the_tokens_of_the_step_before(tiny, make_prompt):
    """A prompt is computed without drafts. In the step of its last token another's guess comes true: drafts are due."""
    prompts, expected = [make_prompt(0, 8), make_prompt(1, 4)], []
    for prompt in prompts:
        expected += serve(LLM(tiny, num_blocks=64), [prompt], greedy(25))
    config = {"num_speculative_tokens": 3, "only_if_quicker": False}
    llm = overlapping(tiny, max_num_batched_tokens=4, enable_prefix_caching=True, speculative_config=config)
    llm.speculation.proposer = Knowing([prompt + text[0][0] for prompt, text in zip(prompts, expected)])
    seen = {llm.add_request(prompts[0], greedy(25)): []}
    for _ in range(5):
        llm.step()
    seen[llm.add_request(prompts[1], greedy(25))] = []
    while llm.has_unfinished_requests():
        for output in llm.step():
            seen[output.request_id] = output.outputs[0].token_ids
        llm.scheduler.check_integrity()
    assert list(seen.values()) == [text[0][0] for text in expected]


def test_a_step_that_only_preempts_is_counted_for_it(tiny):
    """The first text gets its last token and still has its blocks, the second wants one more: nothing is computed."""
    llm = overlapping(tiny, block_size=1, num_blocks=12)
    outputs = llm.generate([[1], [2]], [greedy(6), greedy(10)])
    assert [output.metrics.num_preemptions for output in outputs] == [0, 1]
    assert llm.stats()["vllm:num_preemptions"] == 1


def test_with_a_forward_of_its_own_a_runner_makes_plain_steps(tiny, make_prompt):
    """Which is called at each of them, whoever it belongs to, and whenever it comes."""
    llm, prompt = overlapping(tiny), make_prompt(0, 8)
    launched, forward, called = watch(llm), llm.runner.forward, []
    expected = serve(llm, [prompt], greedy(6))
    assert len(launched) == 6
    llm.runner.forward = lambda plan: called.append(1) or forward(plan)
    assert serve(llm, [prompt], greedy(6)) == expected
    assert len(launched) == len(called) == 6


@pytest.mark.parametrize("value", ["yes", 2, []])
def test_an_option_that_makes_no_sense_is_refused(tiny, value):
    with pytest.raises(ConfigurationError, match="async_scheduling is"):
        LLM(tiny, async_scheduling=value)


def test_on_a_cpu_steps_overlap_only_if_asked(tiny):
    assert not hasattr(LLM(tiny, num_blocks=4), "overlap")
    assert not hasattr(LLM(tiny, num_blocks=4, async_scheduling=False), "overlap")


# ---- random histories, and failures at any line


def test_every_kernel_call_reads_its_own_prefix_where_steps_overlap(tiny):
    run(machine(tiny, OverlapMachine), settings=programs(8))


@pytest.mark.slow
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
def test_every_kernel_call_reads_its_own_prefix_in_more_programs(tiny, preemption, caching):
    run(machine(tiny, OverlapMachine, preemption=preemption, caching=caching), settings=programs(300))


@pytest.mark.slow
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
def test_every_kernel_call_reads_its_own_prefix_with_drafts_and_overlap_at_once(tiny, preemption, caching):
    options = {"preemption": preemption, "caching": caching, "proposer": SameModel(tiny, VOCAB)}
    run(machine(tiny, OverlapMachine, **options), settings=programs(150))


PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 1, 2], [5, 6, 7], [1, 2, 3, 4], [5, 6, 7, 8, 2]]
KINDS = [ways()[0], ways()[1], SamplingParams(n=2, seed=2, max_tokens=5, ignore_eos=True), ways()[3], ways()[0]]
TIGHT = {
    "max_num_batched_tokens": 8, "max_num_seqs": 6, "max_model_len": 32, "attention": "reference", "block_size": 2,
    "num_blocks": 11, "enable_prefix_caching": True,
}  # fmt: skip


def check(folder, lines, with_beams=False):
    kinds = [params for params in KINDS if with_beams or params.beam_width is None]
    requests = [(prompt, params, 0) for prompt, params in zip(PROMPTS, kinds, strict=False)]
    expected, _ = insist_on(lambda: LLM(folder, **TIGHT), requests, Lines())
    found, num_raised = insist_on(lambda: LLM(folder, async_scheduling=True, **TIGHT), requests, lines)
    assert found == expected, f"{found}, and undisturbed {expected}"
    return num_raised


def test_an_interrupt_at_any_line_of_overlap_loses_nothing(tiny):
    lines = Lines()
    check(tiny, lines)
    mine = {place: most for place, most in sorted(lines.counts.items()) if place[0].endswith("overlap.py")}
    assert len(mine) > 60
    for number, (place, most) in enumerate(mine.items()):
        if number % 12 == 0:
            assert check(tiny, Lines(place, 1 + number % most, Boom())), place


def test_an_interrupt_while_a_request_s_end_is_noted_loses_nothing(tiny):
    lines = Lines()
    check(tiny, lines)
    source, first = inspect.getsourcelines(Request._note)
    here = [place for place in lines.counts if place[0].endswith("request.py") and 0 < place[1] - first < len(source)]
    assert len(here) == 3
    for place in here:
        check(tiny, Lines(place, lines.counts[place], Boom()))  # the last time somebody is done


@pytest.mark.slow
def test_an_interrupt_at_every_line_loses_nothing(tiny):
    lines = Lines()
    check(tiny, lines)
    for place, most in sorted(lines.counts.items()):
        for count in {1, (most + 1) // 2, most}:
            check(tiny, Lines(place, count, Boom()))


@pytest.mark.filterwarnings("ignore:a CUDA graph for")  # on a GPU a capture may be interrupted, too
def test_who_mends_may_be_interrupted_too(tiny):
    for seed in range(2):
        assert check(tiny, RandomLines(seed, every=800), with_beams=seed % 2) > 2


def test_nothing_is_collected_in_a_step_and_the_collector_is_left_as_it_was(tiny, prompts):
    llm = overlapping(tiny)
    launch, enabled = llm.overlap._launch, []
    llm.overlap._launch = lambda *step: enabled.append(gc.isenabled()) or launch(*step)
    for is_on in (True, False):
        was_on = gc.isenabled()
        (gc.enable if is_on else gc.disable)()
        try:
            serve(llm, prompts, greedy(3))
            assert gc.isenabled() == is_on
        finally:
            (gc.enable if was_on else gc.disable)()
    assert enabled and not any(enabled)
