"""How the benchmarks measure: many short rounds, taken in turn, of which the median counts.

    round 1   A B C        not   A A A ... B B B ... C C C ...
    round 2   A B C
    ...

What is compared is measured in turn, so that another program that wakes up, or a processor that gets warm, slows all of
it down and not just one. The median is what a round usually takes, and the spread (the range of the middle half) says
how much to believe it. A first round is thrown away, because caches and branch predictors are cold.

The clock counts the processor time of this one thread, so it stands still while other programs have the processor.
Python's garbage collector is off while the clock runs, as in `timeit`: when it comes by depends on everything else that
the program has allocated.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import minipage
from minipage.errors import MinipageError

console = Console(highlight=False)
clock = perf_counter if sys.platform == "win32" else thread_time  # Windows counts processor time in 16 ms only


class Measured(NamedTuple):
    """The rounds of one measurement, in microseconds."""

    median: float
    low: float  # a quarter of the rounds took less
    high: float  # a quarter took more
    num_rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ±{(self.high - self.low) / 2:.2f}"


def summarize(seconds: Sequence[float]) -> Measured:
    """The statistics of at least two rounds."""
    low, median, high = (1e6 * quartile for quartile in statistics.quantiles(seconds, method="inclusive"))
    return Measured(median, low, high, len(seconds))


class Stopwatch:
    """Adds up the time spent in `with` blocks, so that what has to be prepared in between does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = clock()
        try:
            yield
        finally:
            self.seconds += clock() - start


def in_turn(rounds: Sequence[Callable[[], dict[str, float]]], num_rounds: int, what: str) -> list[dict[str, Measured]]:
    """Call each of the functions `num_rounds` times, in turn. Each call returns seconds by name; so does this."""
    seconds: list[dict[str, list[float]]] = [{} for _ in rounds]
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for i in track(range(num_rounds + 1), what, console=console, transient=True, disable=not console.is_terminal):
            for run, so_far in zip(rounds, seconds):
                for name, value in run().items():
                    so_far.setdefault(name, []).append(value)
                    if i == 0:
                        so_far[name].clear()
    finally:
        if was_enabled:
            gc.enable()
    return [{name: summarize(values) for name, values in so_far.items()} for so_far in seconds]


def provenance() -> dict[str, str]:
    """Which software, on which computer."""
    return {
        "minipage": minipage.__version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(os.cpu_count()),
    }


def processor() -> str:
    """The processor's name, if the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def grid(title: str, headings: Sequence[str]) -> Table:
    """A table whose first column is names and whose others are numbers."""
    table = Table(title=title, box=box.SIMPLE)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def main(name: str, meaning: str, run: Callable[[bool], Any], arguments: Sequence[str] | None = None) -> int:
    """Run a benchmark from the command line. Exit codes: 0 fine; 1 something failed; 2 bad input; 130 Ctrl-C."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=meaning)
    parser.add_argument("--quick", action="store_true", help="less of everything: a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all numbers here")
    args = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters that tables are drawn with
    try:
        if args.json:
            args.json.touch()  # better to hear now than after minutes that this cannot be written
        results = run(args.quick)
        console.print(", ".join(f"{key} {value}" for key, value in provenance().items()), style="dim", markup=False)
        if args.json:
            saved = {"benchmark": name, "quick": args.quick, **provenance(), "results": results}
            args.json.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        return 130
    except (OSError, MemoryError, MinipageError) as error:
        print(f"error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2 if isinstance(error, MinipageError) else 1
    return 0
