"""The secret of lesson 8: whoever knows all that a program knows cannot tell what the next one will be."""

import copy
import datetime
import random
import time
from contextlib import contextmanager

import numpy as np

from minipage.learn.graders.prefix_examples import make, watching
from minipage.learn.judge import Wrong


def test_8_5_nobody_can_guess_the_new_secret(impl):
    """Two caches in the same state, at the same time, in programs that have drawn the same numbers."""
    with watching(impl):
        _, cache = make(impl, 2, forgets=True)
        old = cache.root_hash("")
        states, roots = (random.getstate(), np.random.get_state()), []
        try:
            for each in (cache, copy.copy(cache)):
                random.seed(0)
                np.random.seed(0)
                with the_clock_stopped(impl.module):
                    each.reset()
                roots.append(each.root_hash(""))
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
    if roots[0] == roots[1] != old:  # if it stayed as it was, others have better words for it
        raise Wrong(
            "Whoever knew the old secret, the time, or the state of `random`, knows the new one: it was computed from "
            "those. Draw it anew: secrets.token_bytes(32)."
        )


class Stopped(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2023, 11, 14, tzinfo=tz)

    today = utcnow = now


@contextmanager
def the_clock_stopped(module):
    names = ["time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"]
    real = {name: getattr(time, name) for name in names}
    stopped = {
        name: lambda number=number: number for name, number in zip(names, (1.7e9, 17 * 10**17, 5.0, 5 * 10**9) * 2)
    }
    real["datetime"], stopped["datetime"] = datetime.datetime, Stopped
    own = {name: thing for name, thing in vars(module).items() if any(thing is clock for clock in real.values())}
    try:
        vars(time).update({name: stopped[name] for name in names})
        datetime.datetime = Stopped
        vars(module).update({name: stopped[clock.__name__] for name, clock in own.items()})
        yield
    finally:
        vars(time).update({name: real[name] for name in names})
        datetime.datetime = real["datetime"]
        vars(module).update(own)
