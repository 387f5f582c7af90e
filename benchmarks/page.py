"""How fast the page of a long run is: `python -m benchmarks.page`. It needs Chromium and playwright.

The shipped model serves 8 texts at a time from 64 blocks for 10,000 steps, all of them recorded, which takes two
minutes; for 1,000 with --quick.

opening     the page of all steps, from the address to the first frame on the screen, five times
jumping     to the last frame, one back, and to frames anywhere, until they are on the screen
memory      of the browser's process for this page
motion      frames a second while 8 texts in 64 blocks move from phase to phase, 250 ms each
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import main, needed
from minipage import LLM, SamplingParams
from minipage.trace import Trace, record
from minipage.trace.drawing.html import write_page

with needed():
    from playwright.sync_api import sync_playwright

NUM_STEPS, NUM_TEXTS, NUM_BLOCKS, BLOCK_SIZE = 10_000, 8, 64, 16
WORDS = "to be or not that is the question whether 'tis nobler in mind suffer slings and arrows of".split()
NUM_OPENINGS, NUM_JUMPS, NUM_MOTIONS = 5, 20, 40

PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
OPENING = f"""window.opening = new Promise((done) =>
  addEventListener("load", () => {PAINTED}.then(() => done(performance.now()))))"""
TIMED = (
    f"async () => {{{{ const start = performance.now(); {{}}; await {PAINTED}; return performance.now() - start; }}}}"
)
MOVE = """async () => {
  step(1);
  await new Promise(requestAnimationFrame);
  return await new Promise((done) => {
    const start = performance.now();
    let frames = 0;
    const end = (now) => done((1000 * frames) / (now - start));
    const tick = (now) => (frames++, now - start < MOTION ? requestAnimationFrame(tick) : end(now));
    requestAnimationFrame(tick);
  });
}"""


def a_long_run(num_steps: int) -> Trace:
    """Whenever a text is finished, another one comes."""
    rng = random.Random(1)
    llm = LLM(block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS, max_num_batched_tokens=64, max_num_seqs=NUM_TEXTS)
    with record(llm, "A long run") as trace:
        for _ in range(num_steps):
            while len(llm.requests) <= NUM_TEXTS:
                prompt = " ".join(rng.choices(WORDS, k=rng.randint(4, 24)))
                params = SamplingParams(max_tokens=rng.randint(20, 100), seed=rng.randrange(1000), ignore_eos=True)
                llm.add_request(prompt, params)
            llm.step()
    return trace


def open_page(browser: Any, path: Path) -> tuple[Any, float]:
    """The page in a tab of its own, and after how many seconds its first frame was on the screen."""
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    tab.set_default_timeout(600_000)
    tab.add_init_script(OPENING)
    tab.goto(path.as_uri())
    return tab, tab.evaluate("opening") / 1000


def processes(browser: Any) -> list[dict[str, Any]]:
    """What the browser says of its processes: their kind, and their processor time so far."""
    session = browser.new_browser_cdp_session()
    found: list[dict[str, Any]] = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return found


def processor_time(browser: Any) -> float:
    return sum(float(process["cpuTime"]) for process in processes(browser))


def megabytes(browser: Any, tab: Any) -> float:
    """Memory of the largest process that draws pages, without garbage."""
    tab.context.new_cdp_session(tab).send("HeapProfiler.collectGarbage")
    drawing = [process["id"] for process in processes(browser) if process["type"] == "renderer"]
    pages = [int(Path(f"/proc/{number}/statm").read_text().split()[1]) for number in drawing]
    return max(pages) * 4096 / 1e6


def openings(browser: Any, path: Path) -> dict[str, float]:
    seconds, processor = [], []
    for _ in range(NUM_OPENINGS):
        before = processor_time(browser)
        tab, after = open_page(browser, path)
        seconds.append(after)
        processor.append(processor_time(browser) - before)
        tab.close()
    print(f"opened in {median(seconds):.2f} s in the median of {NUM_OPENINGS}, {max(seconds):.2f} at worst;", end=" ")
    print(f"processor time {median(processor):.2f} s, all of the browser's processes together")
    return {"opened": median(seconds), "processor": median(processor)}


def jumps(browser: Any, path: Path) -> dict[str, float]:
    tab, _ = open_page(browser, path)
    rng, num_frames = random.Random(1), tab.evaluate("all.length")
    megabytes_first = megabytes(browser, tab)
    print(f"{megabytes_first:.0f} MB of memory with the first frame,", end=" ")
    there, back = (tab.evaluate(TIMED.format(act)) for act in ("go(Infinity)", "step(-1)"))
    before = processor_time(browser)
    anywhere = [tab.evaluate(TIMED.format(f"go({rng.randrange(num_frames)})")) for _ in range(NUM_JUMPS)]
    processor = 1000 * (processor_time(browser) - before) / NUM_JUMPS
    print(f"{megabytes(browser, tab):.0f} after {NUM_JUMPS} jumps")
    print(f"to the last frame {there:.0f} ms, one back {back:.0f} ms,", end=" ")
    print(f"anywhere {median(anywhere):.0f} ms in the median of {NUM_JUMPS}, {max(anywhere):.0f} at worst;", end=" ")
    print(f"processor time {processor:.0f} ms a jump, with what moves after it")
    tab.close()
    return {"megabytes": megabytes_first, "last": there, "back": back, "anywhere": median(anywhere)}


def motion(browser: Any, path: Path) -> dict[str, float]:
    tab, _ = open_page(browser, path)
    tab.evaluate("show(Math.floor(all.length / 2))")
    rates = sorted(tab.evaluate(MOVE) for _ in range(NUM_MOTIONS))
    print(f"{median(rates):.0f} frames a second in the median of {NUM_MOTIONS} motions,", end=" ")
    print(f"{rates[NUM_MOTIONS // 20]:.0f} at the 5th percentile, {rates[0]:.0f} in the worst")
    tab.close()
    return {"rate": median(rates), "5%": rates[NUM_MOTIONS // 20], "worst": rates[0]}


def run(quick: bool) -> dict[str, dict[str, float]]:
    num_steps = NUM_STEPS // 10 if quick else NUM_STEPS
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise FileNotFoundError("this benchmark needs Chromium, on PATH as chromium or google-chrome.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "page.html"
        start = time.process_time()
        trace = a_long_run(num_steps)
        recorded = time.process_time() - start
        write_page(trace, path, trace.title)
        written = time.process_time() - start - recorded
        print(
            f"{num_steps:,} steps, {len(trace):,} frames: processor time {recorded:.0f} s to run and record them,",
            end=" ",
        )
        print(f"{written:.0f} s to write a page of {path.stat().st_size / 1e6:.1f} MB")
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        found = {measured.__name__: measured(browser, path) for measured in (openings, jumps, motion)}
        browser.close()
    return found


if __name__ == "__main__":
    sys.exit(main("page", __doc__.partition(": ")[0], run))
