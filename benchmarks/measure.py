"""How the benchmarks measure: many short rounds, taken in turn, of which the median counts.

    round 1   A B C        not   A A A ... B B B ... C C C ...
    round 2   A B C
    ...

What is compared is measured in turn, so that another program that wakes up, or a processor that gets warm, slows all of
it down and not just one. The median is what a round usually takes, and the spread (the range of the middle half) says
how much to believe it. A first round is thrown away, because caches and branch predictors are cold.

The clock counts the processor time of this one thread, so it stands still while other programs have the processor.
Where threads work together only the time on the wall is true: that is `Stopwatch(perf_counter)`, on a quiet machine.
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
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import minipage
from benchmarks.charts import Chart, Roofline, save_charts
from minipage.errors import ConfigurationError, MinipageError

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

    def __init__(self, clock: Callable[[], float] = clock) -> None:
        self.clock = clock
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        start = self.clock()
        try:
            yield
        finally:
            self.seconds += self.clock() - start


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


class OtherPrograms:
    """How much of the processors other programs take: a measurement is as good as the machine is quiet."""

    def __init__(self) -> None:
        self._start = perf_counter(), busy_seconds(), own_seconds()

    def __str__(self) -> str:
        """Their share since the beginning. Child processes are our own once they have ended."""
        elapsed, busy, own = (
            now - then for now, then in zip((perf_counter(), busy_seconds(), own_seconds()), self._start)
        )
        share = (busy - own) / elapsed / (os.cpu_count() or 1)
        return "an unknown share" if busy == 0 else f"{100 * max(0.0, share):.0f} %"


def busy_seconds() -> float:
    """Processor time of all programs together since the computer started; 0 if the system does not tell."""
    try:
        user, nice, kernel, _idle, _waiting, *interrupts = Path("/proc/stat").read_text().split()[1:9]
    except OSError:
        return 0.0
    return sum(map(int, (user, nice, kernel, *interrupts))) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor time of this program and of its child processes that have ended."""
    return sum(os.times()[:4])


def has_gpu() -> bool:
    """Whether PyTorch is installed, and finds a GPU."""
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def require_gpu() -> None:
    """Raise ConfigurationError unless there is one."""
    if not has_gpu():
        raise ConfigurationError("this benchmark needs an NVIDIA GPU; `python -m minipage info` says what is there.")


def use_threads(num_threads: int) -> None:
    """Let everybody compute with `num_threads` threads: numba, NumPy's BLAS and PyTorch, as far as they are loaded."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(num_threads)
    if "numba" in sys.modules:
        sys.modules["numba"].set_num_threads(num_threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(num_threads)


def threads() -> dict[str, int]:
    """How many threads each library that is loaded computes with, by its own account."""
    from threadpoolctl import threadpool_info

    counts = {pool["internal_api"]: pool["num_threads"] for pool in threadpool_info()}
    for library in ("numba", "torch"):
        if library in sys.modules:
            counts[library] = sys.modules[library].get_num_threads()
    return counts


def provenance() -> dict[str, str]:
    """Which software, on which computer, with how many threads."""
    libraries = [name for name in ("numpy", "numba", "torch", "transformers") if name in sys.modules]
    return {
        "minipage": minipage.__version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        **{name: version(name) for name in libraries},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(os.cpu_count()),
        **({"threads": " ".join(f"{name}={n}" for name, n in threads().items())} if libraries else {}),
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


MISSING: list[str] = []  # one sentence for each `needed` that was not there


@contextmanager
def needed(package: str = "-e . --group benchmarks") -> Iterator[None]:
    """Around imports that a benchmark cannot do without. What is missing `main` says, which answers --help first."""
    try:
        yield
    except ImportError as error:
        MISSING.append(f"{error}; this benchmark needs `pip install {package}`")
    except MinipageError as error:
        MISSING.append(str(error))


def main(
    name: str,
    meaning: str,
    run: Callable[[bool], Any],
    charts: Callable[[Any], Sequence[Chart | Roofline]] | None = None,
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a benchmark from the command line. Exit codes: 0 fine; 1 something failed; 2 bad input; 130 Ctrl-C.

    `run(quick)` measures, prints its tables and returns its results, fit for JSON; `charts(results)` makes pictures.
    """
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=meaning)
    parser.add_argument("--quick", action="store_true", help="less of everything: a first look, in under a minute")
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="save all numbers (JSON) and pictures (SVG, light and dark) here"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all numbers in this file")
    args = parser.parse_args(arguments)
    if MISSING:
        print(f"error: {MISSING[0]}", file=sys.stderr)
        return 1
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack the letters that tables are drawn with
    try:
        files = [args.json] if args.json else []
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            files.append(args.save / f"{name}.json")
        for file in files:
            file.touch()  # better to hear now than after minutes that this cannot be written
        results = run(args.quick)
        about = provenance()
        console.print(", ".join(f"{key} {value}" for key, value in about.items()), style="dim", markup=False)
        saved = {"benchmark": name, "quick": args.quick, **about, "results": results}
        for file in files:
            file.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")
        if args.save and charts:
            files += save_charts(charts(results), args.save, name)
        if files:
            console.print(f"Saved: {', '.join(map(str, files))}", style="dim", markup=False)
    except KeyboardInterrupt:
        return 130
    except ImportError as error:
        print(f"error: {error}; the benchmarks need `pip install -e . --group benchmarks`", file=sys.stderr)
        return 1
    except (OSError, MemoryError, MinipageError) as error:
        print(f"error: {str(error) or 'out of memory'}", file=sys.stderr)
        return 2 if isinstance(error, MinipageError) else 1
    return 0
