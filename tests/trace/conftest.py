"""The demo's default story on one engine, for all tests of a file."""

import pytest

from minipage import LLM
from minipage.trace.demo import SMALL, Demo
from minipage.trace.frames import is_stop
from minipage.trace.scenarios import DEFAULT, SCENARIOS


@pytest.fixture(scope="module")
def llm():
    return LLM(**SMALL)


@pytest.fixture(scope="module")
def demo_frames(llm):
    """Every step of the demo as it comes out of the box."""
    return list(filter(is_stop, Demo(llm, SCENARIOS[DEFAULT]).frames()))
