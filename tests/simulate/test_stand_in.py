"""The simulator does what the engine does: for the same arrivals its plans are the engine's, step by step."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from minipage import LLM, SamplingParams
from minipage.scheduling import StepPlan
from minipage.simulate.configs import CONFIGS, find_architecture
from minipage.simulate.cost import CostModel, Sizes, Work
from minipage.simulate.machines import A100_40, PAPER_SYSTEM
from minipage.simulate.serve import Report, Setting, Tally, build, capacity, serve
from minipage.simulate.stand_in import Clock, Histogram, StandInRunner
from minipage.simulate.workload import SHAREGPT, Arrival, poisson, until

COST = CostModel(Sizes.of(find_architecture("OPT-13B")), A100_40, PAPER_SYSTEM)
POOL = {"block_size": 4, "num_blocks": 24}


def arrivals(seed, num_requests=20):
    """(step at which it comes, arrival): short enough for the shipped model, and more than its pool holds."""
    rng = np.random.default_rng(seed)
    prefix = 8
    return [
        (int(step), Arrival(0.0, prefix + int(rng.integers(1, 12)), int(rng.integers(1, 24)), 1, False, prefix))
        for step in np.sort(rng.integers(0, 40, num_requests))
    ]


def seen(plan):
    """A plan without the objects in it."""
    chunks = [(chunk.seq.seq_id, chunk.start, chunk.num_tokens, list(chunk.seq.block_table)) for chunk in plan.chunks]
    preempted = [group.group_id for group in plan.preempted]
    return chunks, preempted, list(plan.copies), list(plan.swap_out), list(plan.swap_in)


def watch(engine):
    """Record what each step plans."""
    plans, schedule = [], engine.scheduler.schedule

    def watched():
        plan = schedule()
        plans.append(seen(plan))
        return plan

    engine.scheduler.schedule = watched
    return plans


def run(engine, coming, add, step):
    plans, number = watch(engine), 0
    coming = list(coming)
    while coming or engine.requests:
        while coming and coming[0][0] <= number:
            add(engine, coming.pop(0)[1])
        if engine.requests:
            step(engine)
        number += 1
    return plans


WAYS = {
    "recompute": {},
    "swap": {"preemption": "swap"},
    "prefixes": {"enable_prefix_caching": True},
    "watermark": {"watermark": 0.1},
    "chunks": {"max_num_batched_tokens": 7},
    "seats": {"max_num_seqs": 3},
    "first chunk": {"max_num_batched_tokens": 7, "scheduler_reserve_full_isl": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_simulators_plans_are_the_engines_step_by_step(way):
    options = {"max_num_batched_tokens": 64} | WAYS[way]
    coming = arrivals(1)
    llm = LLM(**POOL, **options, swap_space="1MiB") if way == "swap" else LLM(**POOL, **options)
    own, names = itertools.count(2), itertools.count()

    def add_real(llm, arrival):
        ids = [0] * arrival.prefix + [next(own)] * (arrival.num_prompt_tokens - arrival.prefix)
        params = SamplingParams(max_tokens=arrival.num_output_tokens, ignore_eos=True, temperature=0)
        llm.add_request(ids, params, str(next(names)))

    real = run(llm, coming, add_real, lambda llm: llm.step())

    num_swap_blocks = llm.scheduler.swap_pool.num_blocks if way == "swap" else 0
    setting = Setting(
        COST, 4 * 24, block_size=4, max_model_len=llm.max_model_len, num_swap_blocks=num_swap_blocks,
        **({"watermark": 0.0, "max_num_batched_tokens": 64} | WAYS[way]),
    )  # fmt: skip
    clock = Clock()
    engine = build(setting, clock, Tally(clock), with_content=True)
    numbers = itertools.count()

    def add_simulated(engine, arrival):
        engine.add_request(arrival, None, str(next(numbers)))

    simulated = run(engine, coming, add_simulated, lambda engine: engine.advance())
    assert len(real) > 40
    if way == "prefixes":  # what is generated differs, and so do the blocks found for it; the work does not
        real, simulated = ([[chunk[:3] for chunk in plan[0]] for plan in plans] for plans in (real, simulated))
    assert simulated == real


def test_several_texts_of_a_prompt_are_planned_alike():
    llm = LLM(**POOL, max_num_batched_tokens=64)
    shapes = [(5, 9, 3), (6, 4, 1), (11, 7, 2)]
    for i, (prompt, output, n) in enumerate(shapes):
        llm.add_request([1] * prompt, SamplingParams(n=n, max_tokens=output, ignore_eos=True, seed=i), str(i))
    real = watch(llm)
    while llm.has_unfinished_requests():
        llm.step()
    clock = Clock()
    setting = Setting(COST, 96, block_size=4, max_model_len=256, max_num_batched_tokens=64, watermark=0.0)
    engine = build(setting, clock, Tally(clock))
    for i, (prompt, output, n) in enumerate(shapes):
        engine.add_request(Arrival(0.0, prompt, output, n), None, str(i))
    simulated = watch(engine)
    while engine.requests:
        engine.advance()
    assert simulated == real


PATTERN = [*["sliding_attention"] * 3, "full_attention"] * 2


@pytest.mark.slow
def test_layers_with_windows_are_planned_alike(tmp_path):
    """Groups of layers have blocks of their own, and what lies behind a window is given back in the same steps."""
    small = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 8,
             "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
    windows = {"sliding_window": 6, "use_sliding_window": True, "layer_types": PATTERN}
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["Qwen3-0.6B"] | small | windows))
    options = {"max_num_batched_tokens": 16, "max_model_len": 64}
    llm = LLM(tmp_path, load_format="dummy", block_size=4, num_blocks=60, **options)
    cost = CostModel(Sizes.of(llm.config), A100_40, PAPER_SYSTEM)
    clock = Clock()
    setting = Setting(cost, 4 * 60, block_size=4, watermark=0.0, **options)
    engine = build(setting, clock, Tally(clock))
    numbers, names, coming = itertools.count(), itertools.count(), arrivals(2)

    def add_real(llm, arrival):
        params = SamplingParams(max_tokens=arrival.num_output_tokens, ignore_eos=True, temperature=0)
        llm.add_request([1] * arrival.num_prompt_tokens, params, str(next(names)))

    real = run(llm, coming, add_real, lambda llm: llm.step())
    simulated = run(engine, coming, lambda engine, arrival: engine.add_request(arrival, None, str(next(numbers))),
                    lambda engine: engine.advance())  # fmt: skip
    assert simulated == real and any(preempted for _, preempted, *_ in real)
    whole = [(len(blocks), 4 * -(-(start + count) // 4)) for chunks, *_ in real for _, start, count, blocks in chunks]
    assert any(few < all_of_them for few, all_of_them in whole)  # windows have moved on


def launched(host, device, count):
    """(host's clock, device's) after each of several steps that overlap: launch 2, wait for 1, launch 3, ..."""
    clock, times = Clock(), []
    cost = SimpleNamespace(
        sizes=SimpleNamespace(shares=()), host=lambda work: host, device=lambda work: device, overheads=None
    )
    runner = StandInRunner(cost, clock, lambda *step: None)
    runner.pool = None
    chunk = SimpleNamespace(group=None, seq=SimpleNamespace(token_ids=[1]), start=0, num_tokens=1)
    plan = StepPlan(chunks=[chunk])
    wait = runner.launch(plan, [])
    for _ in range(count):
        following = runner.launch(plan, [])
        wait()
        times.append((clock.now, runner.free_at))
        wait = following
    return times


def test_a_host_launches_the_next_step_and_then_waits_for_this_one():
    assert launched(1.0, 3.0, 3) == [(3.0, 6.0), (6.0, 9.0), (9.0, 12.0)]
    assert launched(5.0, 1.0, 3) == [(10.0, 10.0), (15.0, 15.0), (20.0, 20.0)]


@pytest.mark.parametrize("way", ["recompute", "seats", "chunks"])
def test_overlapped_steps_are_planned_as_the_engine_plans_them(way):
    """Whoever comes is in the step after the next one; the engine's own Overlap plans both."""
    options, coming = {"max_num_batched_tokens": 64} | WAYS[way], arrivals(3)
    llm, names, numbers = LLM(**POOL, **options, async_scheduling=True), itertools.count(), itertools.count()

    def add_real(llm, arrival):
        params = SamplingParams(max_tokens=arrival.num_output_tokens, ignore_eos=True, temperature=0)
        llm.add_request([1] * arrival.num_prompt_tokens, params, str(next(names)))

    real = run(llm, coming, add_real, lambda llm: llm.step())
    cost = replace(COST, overheads=replace(PAPER_SYSTEM, overlaps=True))
    setting = Setting(cost, 96, block_size=4, max_model_len=llm.max_model_len, watermark=0.0, **options)
    clock = Clock()
    engine = build(setting, clock, Tally(clock))
    simulated = run(engine, coming, lambda engine, arrival: engine.add_request(arrival, None, str(next(numbers))),
                    lambda engine: engine.advance())  # fmt: skip
    assert len(real) > 40 and simulated == real


# ---- the clock


def test_a_lone_request_takes_a_prefill_and_a_step_for_each_further_token():
    report = serve(Setting(COST, 15_728), [Arrival(3.0, 100, 5)])
    prefill = COST.seconds(Work(100, 1, 1, 112, 5050))  # memory delivers whole blocks
    steps = sum(COST.seconds(Work(1, 1, 1, n, n)) for n in range(101, 105))
    assert report.latency.sum == pytest.approx(prefill + steps, rel=0.01)
    assert report.time_to_first_token.sum == pytest.approx(prefill, rel=0.01)
    assert report.seconds == pytest.approx(3 + prefill + steps, rel=0.01)
    assert report.num_tokens == 5


def test_the_clock_jumps_to_the_next_arrival_when_nobody_is_there():
    report = serve(Setting(COST, 15_728), [Arrival(0.0, 10, 1), Arrival(1000.0, 10, 1)])
    assert 1000 < report.seconds < 1001
    assert report.num_steps == 2


def test_a_request_that_can_never_fit_is_counted_and_the_others_go_on():
    report = serve(Setting(COST, 64, max_model_len=2048), [Arrival(0.0, 100, 100), Arrival(0.0, 10, 10)])
    assert (report.num_refused, report.num_requests) == (1, 1)


def test_the_same_seed_gives_the_same_numbers():
    def once(seed):
        return serve(Setting(COST, 4096), until(poisson(SHAREGPT.draw(seed), 1.0, seed), 15)).numbers()

    assert str(once(0)) == str(once(0)) != str(once(1))


def test_nothing_is_kept_of_requests_that_are_done():
    clock = Clock()
    engine = build(Setting(COST, 4096), clock, Tally(clock))
    for i in range(50):
        engine.add_request(Arrival(0.0, 10, 3), None, str(i))
    while engine.requests:
        engine.advance()
    assert not engine.requests and not engine.scheduler.groups and not engine._news
    assert engine.block_pool.num_used == 0
    engine.scheduler.check_integrity()


def test_all_memories_lose_nothing_and_static_batches_serve_everybody():
    coming = list(until(poisson(SHAREGPT.draw(0), 1.0, 0), 20))
    for memory in ("paged", "oracle", "pow2", "max", "static"):
        report = serve(Setting(COST, 15_728, memory), coming)
        assert report.num_requests == len(coming)
        assert report.num_tokens == sum(arrival.num_output_tokens for arrival in coming)


def test_reserving_gives_all_places_back_also_after_beams_that_fork_and_die():
    for memory in ("oracle", "pow2", "max"):
        clock = Clock()
        engine = build(Setting(COST, 15_728, memory), clock, Tally(clock))
        for i in range(12):
            engine.add_request(Arrival(0.0, 20 + i, 30, 3, i % 2 == 0), None, str(i))
        while engine.requests:
            engine.advance()
        pool = engine.block_pool
        assert pool.allocator.num_free == pool.num_blocks == 15_728
        pool.allocator.check_integrity([])


def test_reserving_the_maximum_runs_as_many_as_places_of_2048_slots_fit():
    report = serve(Setting(COST, 15_728, "max"), until(poisson(SHAREGPT.draw(0), 5.0, 0), 20), warm=5)
    assert report.mean_batch == pytest.approx(7)


def test_beams_share_blocks_and_the_real_search_decides():
    coming = [Arrival(0.0, 40, 60, 4, True)]
    report = serve(Setting(COST, 15_728), coming)
    assert 0.3 < report.saved < 0.75
    assert report.num_requests == 1


def test_at_the_most_that_can_be_served_the_rate_is_tokens_a_second_divided_by_tokens_of_a_request():
    def equal():
        while True:
            yield 64, 64

    setting = Setting(COST, 15_728, max_num_seqs=16)
    rate = capacity(setting, poisson(equal(), 1.0, 0), 150)
    saturated = serve(setting, [Arrival(0.0, 64, 64)] * 160)
    assert rate == pytest.approx(saturated.tokens_per_second / 64, rel=0.1)


# ---- numbers in buckets


def test_a_histogram_is_right_to_one_percent():
    numbers = np.random.default_rng(0).lognormal(0, 2, 20_000)
    histogram = Histogram()
    for number in numbers:
        histogram.add(float(number))
    assert histogram.mean == pytest.approx(numbers.mean())
    for share in (0.5, 0.9, 0.99):
        assert histogram.quantile(share) == pytest.approx(np.quantile(numbers, share), rel=0.02)
    assert len(histogram.counts) < 2500


def test_an_empty_report_has_no_numbers_and_does_not_fail():
    assert Report().numbers()["requests"] == 0
