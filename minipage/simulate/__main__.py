"""The simulations on screen: `python -m minipage.simulate`, and the paper's figures: `... figure N`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from itertools import islice

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid

from minipage.errors import ConfigurationError, require_positive
from minipage.output import output_console, print_whole, run_command
from minipage.simulate.figures_cli import add_figure, run_figures
from minipage.simulate.simulation import (
    BLOCK_SIZE,
    NUM_SLOTS,
    PAPER,
    Result,
    draw_lengths,
    draw_requests,
    mean_held,
    memories,
    simulate,
    worked_example,
)


def run_all(num_slots: int, block_size: int, num_requests: int, seed: int, console: Console) -> dict[str, Result]:
    """Simulate each memory with the same requests; with a progress bar, if this is a terminal."""
    columns = TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    results = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=num_requests)
        for name, memory in memories(num_slots, block_size).items():
            progress.reset(bar, description=name)
            requests = draw_requests(seed)
            results[name] = simulate(memory, requests, num_slots, num_requests, lambda: progress.advance(bar))
    return results


def figure_2(results: dict[str, Result], beside_paper: bool) -> Grid:
    title = "Where the slots go, in % of the memory" + " (paper: Figure 2; batch: Figure 13a)" * beside_paper
    grid = Grid(title=title, box=box.SIMPLE)
    for heading in ("", " "):
        grid.add_column(heading, no_wrap=True)
    for heading in ("token\nstates", "reserved", "internal", "external", "mean\nbatch"):
        grid.add_column(heading, justify="right")
    for name, result in results.items():
        grid.add_row(name, "simulated", *map(number, [*result.shares, result.mean_batch]))
        if beside_paper:
            shares, batch = PAPER[name]
            grid.add_row("", "paper", *map(number, [*shares, batch]), style="dim", end_section=True)
    return grid


def examples(seed: int, block_size: int) -> Grid:
    count, shortest, longest = 64, 50, 2000
    title = f"{count} requests of {shortest} to {longest:,} tokens: slots that they take"
    grid = Grid("lengths drawn", title=title, box=box.SIMPLE)
    for heading in ("tokens in all", "contiguous", f"paged, blocks of {block_size}"):
        grid.add_column(heading, justify="right")
    for distribution in ("uniform", "log-uniform"):
        lengths = draw_lengths(distribution, count, shortest, longest, seed)
        grid.add_row(distribution, *(f"{n:,}" for n in worked_example(lengths, longest, block_size)))
    return grid


def number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.1f}"


def report(args: argparse.Namespace) -> None:
    console = output_console()
    require_positive(slots=args.slots, block_size=args.block_size, requests=args.requests)
    if args.seed < 0:
        raise ConfigurationError(f"the seed is {args.seed}; it must not be negative.")
    results = run_all(args.slots, args.block_size, args.requests, args.seed, console)
    held = mean_held(islice(draw_requests(args.seed), args.requests))
    print_whole(console, figure_2(results, beside_paper=args.slots == NUM_SLOTS))
    console.print(
        f"{args.slots:,} slots, paged in blocks of {args.block_size}; {args.requests:,} requests, seed {args.seed}.\n"
        f"A request holds {held:.0f} tokens on average while it runs, so about {args.slots / held:.0f} fit at once.\n"
        f"Paging reserves nothing, so it can run out: {results['paged'].preemptions:.1f} preemptions a request.\n"
    )
    print_whole(console, examples(args.seed, args.block_size))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(lambda: run(arguments))


def run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        "python -m minipage.simulate", description="What reserving memory wastes, and paging does not."
    )
    parser.add_argument("--requests", type=int, default=1000, help="requests to finish (default: 1000)")
    parser.add_argument("--slots", type=int, default=NUM_SLOTS, help=f"size of the memory (default: {NUM_SLOTS})")
    parser.add_argument("--block-size", type=int, default=BLOCK_SIZE, help=f"slots in a block (default: {BLOCK_SIZE})")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other requests (default: 0)")
    parser.set_defaults(run=report)
    commands = parser.add_subparsers(metavar="figure")
    figure = commands.add_parser("figure", help="rerun a figure of the paper; `figure --help` says which there are")
    add_figure(figure)
    figure.set_defaults(run=run_figures)
    args = parser.parse_args(arguments)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
