"""How long until something is there to see? `python -m benchmarks.startup`

Each thing is done in a new Python process, in turn, and the median of the rounds is what counts, on the wall. The first
round, which compiles what numba then keeps in its cache, does not count.

    import                 nothing but the import
    --help                 the command line says what it can do
    the demo's first page  until the first frame of the demo is on the screen
    LLM()                  the shipped model is loaded and memory is there
    first token            until LLM() has generated one token
    import torch, ...      for comparison: what others wait for before they can begin
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from time import perf_counter
from typing import Any

from rich.progress import track

from benchmarks.charts import Chart
from benchmarks.measure import OtherPrograms, console, grid, main

TOKEN = "llm.generate('To be', minipage.SamplingParams(max_tokens=1))"
THINGS = {
    "python, doing nothing": ["-c", "pass"],
    "import minipage": ["-c", "import minipage"],
    "minipage --help": ["-m", "minipage", "--help"],
    "the demo's first page": ["-m", "minipage", "demo", "--steps", "1"],
    "LLM()": ["-c", "import minipage; minipage.LLM()"],
    "LLM(), first token": ["-c", f"import minipage; llm = minipage.LLM(); {TOKEN}"],
    "import numpy, numba": ["-c", "import numpy, numba"],
    "import torch": ["-c", "import torch"],
    "transformers' GPT-2 class": ["-c", "from transformers import GPT2LMHeadModel"],
}


def seconds(arguments: list[str]) -> float:
    start = perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return perf_counter() - start


def run(quick: bool) -> list[dict[str, Any]]:
    others = OtherPrograms()
    times: dict[str, list[float]] = {name: [] for name in THINGS}
    turns = [name for _ in range(3 if quick else 11) for name in THINGS]
    for name in track(turns, "Starting", console=console, transient=True, disable=not console.is_terminal):
        times[name].append(seconds(THINGS[name]))
    table = grid("Seconds (median, and the range of the middle half)", ["", "median", "from", "to"])
    results = []
    for name, each in times.items():
        low, median, high = statistics.quantiles(each[1:], method="inclusive")
        table.add_row(name, f"{median:.2f}", f"{low:.2f}", f"{high:.2f}")
        results.append({"what": name, "median": median, "low": low, "high": high, "num_rounds": len(each) - 1})
    console.print(table)
    console.print(f"Meanwhile other programs took {others} of the processors.\n")
    return results


def charts(results: list[dict[str, Any]]) -> list[Chart]:
    return [
        Chart("From nothing to ...", "s", [row["what"] for row in results], {"median": [r["median"] for r in results]})
    ]


if __name__ == "__main__":
    sys.exit(main("startup", "How long until something is there to see.", run, charts))
