"""The demo's default story on one engine, and pages in a browser, for all tests of a file."""

from contextlib import ExitStack, contextmanager
from pathlib import Path

import chromium
import pytest

from minipage import LLM
from minipage.trace.drawing.html import page
from minipage.trace.playing.demo import SMALL, Demo
from minipage.trace.playing.scenarios import DEFAULT, SCENARIOS
from minipage.trace.recording.frames import is_stop


@pytest.fixture(scope="module")
def llm():
    return LLM(**SMALL)


@pytest.fixture(scope="module")
def demo_frames(llm):
    """Every step of the demo as it comes out of the box."""
    return list(filter(is_stop, Demo(llm, SCENARIOS[DEFAULT]).frames()))


browsers, running = [], ExitStack()


@pytest.fixture
def browser():
    """One for all files here, as to start it takes a second; closed before tests elsewhere, which may use asyncio."""
    if not browsers:
        browsers.append(running.enter_context(chromium.started()))
        running.callback(browsers.clear)
    return browsers[0]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    if nextitem is None or nextitem.path.parent != Path(__file__).parent:
        running.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of frames; when it is closed, there must have been no request and no complaint."""

    @contextmanager
    def open_page(frames, address="", document=None, **options):
        tab = browser.new_page(viewport={"width": 1280, "height": 800}, **options)
        tab.set_default_timeout(120_000)  # milliseconds; on a busy machine even opening a page may take a minute
        complaints = []
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        path = tmp_path / "trace.html"
        path.write_text(document or page(frames, "A story", "in six steps"), "utf-8")
        tab.on(
            "request", lambda ask: ask.url.startswith((path.as_uri(), "data:", "about:")) or complaints.append(ask.url)
        )
        tab.goto(path.as_uri() + address)
        yield tab
        tab.close()
        assert complaints == []

    return open_page
