"""Random traffic on the scheduler (see scheduler_machine.py). test_scheduler_mutants.py proves that it finds bugs."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test as run
from rewritten_scheduler import Rewritten

from minipage.promises.scheduler_machine import machine


def run_histories(count, machine):
    """So many histories, or more if the hypothesis profile asks for more; a slow or busy computer changes nothing."""
    count = max(count, settings().max_examples)
    no_clock = {"deadline": None, "suppress_health_check": [*HealthCheck]}
    run(machine, settings=settings(max_examples=count, stateful_step_count=12, **no_clock))
    assert machine.num_histories >= count, f"{count} histories were wanted, {machine.num_histories} were run"


def test_everybody_reads_its_own_tokens_is_treated_fairly_and_finishes():
    run_histories(100, machine())


def test_another_scheduler_that_keeps_the_same_promises_passes():
    run_histories(60, machine(Scheduler=Rewritten))


@pytest.mark.slow  # one to two minutes each, on one idle core
@pytest.mark.parametrize("caching", [False, True], ids=["without prefix cache", "with prefix cache"])
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
def test_more_than_20000_histories_in_all(preemption, caching):
    run_histories(3_500, machine(preemption=preemption, caching=caching))
