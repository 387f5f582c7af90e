"""What a screen reader and a keyboard would miss on a page: axe (axe-core, MPL 2.0)."""

import pytest


def serious(tab):
    """(rule, element) of whatever is serious, or worse."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    found = axe.Axe().run(tab).response["violations"]
    return [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")]
