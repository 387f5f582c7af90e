"""What the graders have in common: settings of hypothesis, and ways to say what is wrong."""

from collections.abc import Callable
from functools import wraps
from itertools import product
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from minipage.learn.judge import Wrong


def programs(count, num_steps=20):
    """So many random examples, the same every time, and then the smallest that fails; no clock decides anything."""
    return settings(
        max_examples=count,
        stateful_step_count=num_steps,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=[*HealthCheck],
    )


QUICK = programs(80)


def every(**ranges):
    """Run a grader with every combination of these numbers, the small ones first: the first failure is small."""

    def decorate(grader):
        @wraps(grader)
        def graded(impl):
            for numbers in sorted(product(*ranges.values()), key=sum):
                grader(impl, **dict(zip(ranges, numbers)))

        del graded.__wrapped__  # or pytest would ask for the numbers as fixtures
        return graded

    return decorate


def expect(what: str, got: Any, expected: Any, why: str) -> None:
    """`what` names what is looked at, for example "pool.free_queue"."""
    if got != expected or (type(got) is not type(expected) and isinstance(expected, list | tuple)):
        raise Wrong(why, expected, got, what)


def must_raise(error: type[Exception], operation: Callable[[], Any], why: str) -> None:
    """The operation has to raise this error, and no other."""
    try:
        result = operation()
    except error:
        return
    except NotImplementedError:
        raise
    except Exception as other:
        raise Wrong(why, error, other) from other
    raise Wrong(why, error, result)


def run_machine(solution, machine, count=60, num_steps=15):
    """Run a state machine, and begin the diary anew with each of its programs."""

    class WithDiary(machine):
        def __init__(self):
            solution.diary.begin()
            super().__init__()

    run_state_machine_as_test(WithDiary, settings=programs(count, num_steps))
