"""How fast the page of a trace is: `python -m benchmarks.page`. It needs Chromium and playwright.

frames a second      while 8 texts in 64 blocks move from step to step, 250 ms each
opening              a page of 10,000 steps, five phases each, until its first frame is drawn
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from minipage.trace.drawing.html import difference, page
from minipage.trace.recording.frames import Frame

WALK = """async () => {
  const rates = [];
  for (let i = 0; i < 40; i++) {
    step(1);
    await new Promise(requestAnimationFrame);
    await new Promise((done) => {
      const start = performance.now();
      let frames = 0;
      const end = (now) => (rates.push((1000 * frames) / (now - start)), done());
      const tick = (now) => (frames++, now - start < MOTION ? requestAnimationFrame(tick) : end(now));
      requestAnimationFrame(tick);
    });
  }
  return rates.sort((a, b) => a - b);
}"""
OPENING = "performance.now()"


def of_steps(document: str, times: int) -> str:
    """The same page, its frames `times` over: how long a run is, not what is in it, is what counts here."""
    data: dict[str, Any] = json.loads(found[1]) if (found := find_data(document)) else {}
    first, *others = data["deltas"]
    tree: Any = {}
    for delta in data["deltas"]:
        tree = patched(tree, delta)
    again = difference(tree, patched({}, first))
    data["deltas"] = [first, *others, *([again, *others] * (times - 1))]
    return document.replace(found[1] if found else "", json.dumps(data).replace("<", r"\u003c"))


def find_data(document: str) -> re.Match[str] | None:
    return re.search(r'<script type="application/json" id="trace">(.*?)</script>', document, re.DOTALL)


def patched(old: Any, change: Any) -> Any:
    """What `patch` in viewer.js does."""
    if isinstance(change, list):
        return old[: change[0]] + change[1] if change[0] else change[1]
    if not isinstance(change, dict):
        return change
    new = dict(old) if isinstance(old, dict) else {}
    new |= {key: patched(new.get(key), value) for key, value in change.items()}
    return {key: value for key, value in new.items() if value is not None}


def measure(frames: list[Frame]) -> None:
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    document = page(frames, "64 blocks, 8 texts")
    num_steps = len({frame.step for frame in frames})
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        path = Path(folder) / "page.html"
        path.write_text(document, encoding="utf-8")
        tab.goto(path.as_uri())
        rates = tab.evaluate(WALK)
        print(f"{len(document) / 1e6:.2f} MB for {num_steps} steps")
        print(
            f"{rates[len(rates) // 2]:.0f} frames a second in the middle of 40 motions, {rates[2]:.0f} near the slowest"
        )
        path.write_text(of_steps(document, 10_000 // num_steps), encoding="utf-8")
        tab.goto(path.as_uri())
        opened = tab.evaluate(OPENING)
        print(f"10,000 steps, {path.stat().st_size / 1e6:.1f} MB: opened in {opened / 1000:.2f} s")
        browser.close()


if __name__ == "__main__":
    from tests.trace.test_html import a_long_run

    measure(a_long_run(200))
