"""A Chromium that is there already; without one, the tests of pages are skipped."""

import shutil
from contextlib import contextmanager

import pytest


@contextmanager
def started():
    api = pytest.importorskip("playwright.sync_api", reason="pages are tried out with playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("neither chromium nor google-chrome is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
