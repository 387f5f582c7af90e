"""`scheduler_reserve_full_isl=False`: who comes in as soon as a first chunk fits, what it costs; and all finish."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test as run

from minipage.engine.llm import LLM
from minipage.errors import ConfigurationError, InvalidRequestError
from minipage.promises.scheduler_machine import SchedulerMachine, machine
from minipage.promises.scheduling_examples import add, make, names, step
from minipage.sampling import SamplingParams
from minipage.scheduling import Scheduler
from minipage.scheduling.first_chunk import FirstChunkScheduler

CHUNKS = {"num_blocks": 10, "block_size": 4, "max_num_batched_tokens": 8}


def served(scheduler):
    """Run to the end; how many preemptions that took."""
    groups, num_steps = list(scheduler.groups), 0
    while scheduler.has_unfinished:
        assert step(scheduler), "unfinished, but nothing is computed"
        num_steps += 1
        assert num_steps < 1000
    return sum(group.num_preemptions for group in groups)


def two_that_do_not_fit_together(cls, **options):
    scheduler = make(cls=cls, **CHUNKS, **options)
    add(scheduler, "A", num_prompt=28, num_generated=3)
    add(scheduler, "B", num_prompt=28, num_generated=3)
    return scheduler


def test_a_whole_prompt_is_waited_for_and_nothing_is_computed_twice():
    scheduler = two_that_do_not_fit_together(Scheduler)
    for _ in range(4):
        step(scheduler)
    assert names(scheduler.running) == ["A"], "7 of 10 blocks are A's"
    assert served(scheduler) == 0


def test_a_first_chunk_comes_in_and_is_lost_again():
    scheduler = two_that_do_not_fit_together(FirstChunkScheduler)
    for _ in range(3):
        step(scheduler)
    assert step(scheduler) == [("A", 24, 4), ("B", 0, 4)], "the last 4 tokens of A leave 4 of the step's for B"
    assert served(scheduler) > 0


def test_the_first_chunk_is_what_is_left_of_the_steps_tokens():
    scheduler = make(cls=FirstChunkScheduler, num_blocks=10, max_num_batched_tokens=16)
    add(scheduler, "A", num_prompt=28, num_generated=1)
    step(scheduler)
    add(scheduler, "B", num_prompt=20, num_generated=1)
    assert step(scheduler) == [("A", 16, 12), ("B", 0, 4)], "1 block is enough for 4 tokens, of the 3 that are free"


def test_a_chunk_that_does_not_fit_waits():
    scheduler = make(cls=FirstChunkScheduler, num_blocks=10, max_num_batched_tokens=32)
    add(scheduler, "A", num_prompt=32, num_generated=5)
    add(scheduler, "B", num_prompt=32, num_generated=1)
    step(scheduler)
    assert step(scheduler) == [("A", 32, 1)], "31 tokens of B would take 8 blocks, and 1 is free"


@pytest.mark.parametrize("cls", [Scheduler, FirstChunkScheduler])
def test_one_larger_than_the_pool_less_the_watermark_is_admitted_as_soon_as_nobody_runs(cls):
    scheduler = make(cls=cls, **CHUNKS, watermark=0.9)
    add(scheduler, "small", num_prompt=4, num_generated=3)
    add(scheduler, "large", num_prompt=36, num_generated=4)
    step(scheduler)
    assert names(scheduler.waiting) == ["large"]
    served(scheduler)
    with pytest.raises(InvalidRequestError, match="the whole pool has 10"):
        add(scheduler, "too large", num_prompt=40, num_generated=2)


def test_the_watermark_holds_for_first_chunks_too():
    scheduler = make(cls=FirstChunkScheduler, num_blocks=10, max_num_batched_tokens=16, watermark=0.3)
    add(scheduler, "A", num_prompt=26, num_generated=1)
    add(scheduler, "B", num_prompt=20, num_generated=1)
    for _ in range(2):
        step(scheduler)
    assert names(scheduler.waiting) == ["B"], "A holds 7 blocks; a chunk of 6 tokens would leave 1 of 3"


class FirstChunkMachine(SchedulerMachine):
    """Random traffic; what has to fit is the first chunk."""

    def check_room(self, admitted):
        s = self.scheduler
        if admitted:
            enough = self.pool.num_free >= self.watermark_blocks or s.running == [admitted[-1]]
            assert enough, f"{admitted[-1]} was let in and leaves {self.pool.num_free} blocks, below the watermark"
        return admitted


def first_chunk_machine(**parts):
    made = machine(Scheduler=FirstChunkScheduler, **parts)
    return type("FirstChunkMachine", (FirstChunkMachine,), {k: v for k, v in vars(made).items() if k[:2] != "__"})


def histories(count, num_steps):
    checks = [*HealthCheck]
    return settings(max_examples=count, stateful_step_count=num_steps, deadline=None, suppress_health_check=checks)


def test_random_traffic_is_treated_fairly_and_everybody_finishes():
    run(first_chunk_machine(), settings=histories(40, 12))


@pytest.mark.slow
@pytest.mark.parametrize("caching", [False, True])
def test_more_random_traffic(caching):
    run(first_chunk_machine(caching=caching), settings=histories(4000, 12))


# ---- in the engine


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("watermark", [0.0, 0.3])
@pytest.mark.parametrize("unit", [None, 1])
def test_no_token_changes(reserve, watermark, unit):
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    prompts = [[3, 5, 7, *range(i, i + 40 - 9 * i)] for i in range(4)]
    expected = [output.outputs[0].token_ids for output in LLM(num_blocks=64).generate(prompts, params)]
    llm = LLM(
        block_size=4, num_blocks=14, max_num_batched_tokens=8, watermark=watermark, enable_prefix_caching=True,
        prefix_match_unit=unit, scheduler_reserve_full_isl=reserve,
    )  # fmt: skip
    outputs = llm.generate(prompts, params)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    llm.scheduler.check_integrity()
    assert isinstance(llm.scheduler, FirstChunkScheduler) is not reserve


def test_what_makes_no_sense_is_refused():
    for value in (1, None, "yes"):
        with pytest.raises(ConfigurationError, match="must be True or False"):
            LLM(num_blocks=8, scheduler_reserve_full_isl=value)
    with pytest.raises(ConfigurationError, match="no effect on a scheduler that is handed in"):
        LLM(num_blocks=8, scheduler=type("Mine", (Scheduler,), {}), scheduler_reserve_full_isl=False)
    with pytest.raises(ConfigurationError, match="scheduler_reserve_full_isl would have no effect"):
        LLM(scheduler=make(), scheduler_reserve_full_isl=False)
