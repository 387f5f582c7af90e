"""The stories, each run once for all tests that look at it."""

from functools import cache

import pytest

from minipage.trace.drawing.html import page
from minipage.trace.playing.demo import Demo, make_engine
from minipage.trace.playing.scenarios import SCENARIOS
from minipage.trace.recording.frames import is_stop


@cache
def played(name):
    """A story, run as it comes out of the box: its demo, and all frames."""
    demo = Demo(make_engine(SCENARIOS[name], {}), SCENARIOS[name])
    return demo, list(demo.frames())


def frames_of(name):
    return played(name)[1]


def stops_of(name):
    """Step by step."""
    return list(filter(is_stop, frames_of(name)))


@cache
def document_of(name):
    """Its page."""
    return page(frames_of(name), SCENARIOS[name].title)


def slow_but(names, *usual):
    """Parameters for all names, of which by default only the usual ones are run."""
    return [pytest.param(name, marks=[] if name in usual else pytest.mark.slow) for name in names]
