"""Random examples: drawn once, shown to everybody, and drawn again for whoever fails one.

    @programs(80)                         before anybody's code runs    .draw(): hypothesis draws, nobody is judged
    @given(sizes=st.lists(...))           for each solution             the same examples, one after the other
    def test_1_2_waste(impl, sizes)       if it fails one               hypothesis, which finds the smallest that fails

What is drawn does not depend on who is judged, and drawing takes longer than judging. Where it does depend (st.data),
hypothesis draws for everybody anew.
"""

import random
from copy import deepcopy
from functools import cache, update_wrapper, wraps

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

TWICE = "The same calls went well the second time. Is something kept outside of `self`, or drawn at random?"
ASKS_BACK = type(st.data())


def settings(count, num_steps=20):
    """This many random examples, the same every time, and then the smallest that fails; no clock decides anything."""
    return hypothesis.settings(
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


class Drawn(list):
    """In the place of a solution: it is asked nothing, and keeps what it would have been asked."""


def given(**strategies):
    """hypothesis's `given`, for a grader. It goes under `programs`."""

    def decorate(grader):
        @wraps(grader)
        def asked(impl, **example):
            if type(impl) is Drawn:
                impl.append(example)
            else:
                grader(impl, **example)

        test = hypothesis.given(**strategies)(asked)
        test.asks_back = any(isinstance(strategy, ASKS_BACK) for strategy in strategies.values())
        return test

    return decorate


def programs(count):
    """Run what `given` has made with this many examples."""

    def decorate(test):
        test = settings(count)(test)
        return test if test.asks_back else drawn_once(test)

    return decorate


def drawn_once(test):
    @cache
    def draw():
        examples = Drawn()
        test(examples)
        return tuple(examples)

    def graded(impl):
        for example in draw():
            seed_all()
            try:
                grader(impl, **deepcopy(example))
            except NotImplementedError:
                raise
            except Exception as error:
                test(impl)
                raise AssertionError(TWICE) from error

    grader = test.hypothesis.inner_test.__wrapped__
    update_wrapper(graded, test, updated=())
    del graded.__wrapped__  # or pytest would take it for a test of hypothesis
    graded.draw = draw
    return graded


def seed_all():
    """As hypothesis does it: whoever draws at random draws the same each time."""
    random.seed(0)
    np.random.seed(0)
