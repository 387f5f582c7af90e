"""`python -m minipage.simulate figure N`: rerun figures on all cores, and show them beside the paper's numbers."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid

from minipage.errors import ConfigurationError
from minipage.output import output_console, print_whole, writing
from minipage.simulate.configs import find_architecture
from minipage.simulate.cost import Sizes
from minipage.simulate.figures import FIGURES, Scale
from minipage.simulate.paper import SERVERS, Figure, Row
from minipage.simulate.pictures import svg
from minipage.simulate.pools import run_jobs

QUICK = 0.1
MARK = "<!-- results -->"


def add_figure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="N", help=f"one of table1, {', '.join(FIGURES)}, or all")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other requests (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests: a first look")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    parser.add_argument(
        "--cluster", metavar="ADDRESS",
        help="run on a Ray cluster: auto, ray://HOST:10001, or local, which starts one (needs minipage[ray])",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers into a file")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="write the pictures into a folder")
    parser.add_argument("--page", type=Path, metavar="FILE", help=f"write all of it into Markdown, behind {MARK}")


def run_figures(args: argparse.Namespace) -> None:
    name = args.name.lower()
    names = ["table1", *FIGURES] if name == "all" else [name]
    unknown = [name for name in names if name not in FIGURES and name != "table1"]
    if unknown:
        measured = " 18a is measured, and not simulated: docs/paper.md has it." if unknown[0] == "18a" else ""
        raise ConfigurationError(f"figure {unknown[0]} is not among {', '.join(FIGURES)}, table1 and all.{measured}")
    if args.jobs < 1 or args.seed < 0:
        raise ConfigurationError("--jobs has to be at least 1, and --seed at least 0.")
    check_files(args)
    console = output_console()
    scale = Scale(args.seed, QUICK if args.quick else 1.0)
    done = []
    for name in names:
        figure = table_1() if name == "table1" else rerun(name, scale, args, console)
        done.append(figure)
        show(figure, console)
        if args.svg or args.page:
            save_pictures(figure, args.svg or args.page.parent)
    if args.quick:
        console.print(
            "A tenth of the requests (--quick): queues stay short, so some numbers are missed that a full run meets."
        )
    if args.json:
        with writing(args.json):
            args.json.write_text(json.dumps([figure.numbers() for figure in done], indent=1) + "\n", encoding="utf-8")
    if args.page:
        with writing(args.page):
            args.page.write_text(f"{text_before(args.page)}{MARK}\n\n{page(done, args)}", encoding="utf-8")


def check_files(args: argparse.Namespace) -> None:
    """Before minutes are spent on what cannot be written."""
    for option, file in (("--json", args.json), ("--page", args.page)):
        real = Path(os.path.realpath(file or "."))  # still a link if links lead in a circle
        if file and (real.is_dir() or real.is_symlink() or not real.parent.is_dir()):
            raise ConfigurationError(f"{option} is {str(file)!r}; it must be a file, in a folder that is there.")
    if args.json and args.page and os.path.realpath(args.json) == os.path.realpath(args.page):
        raise ConfigurationError("--json and --page name the same file; give them one each.")
    if args.svg and os.path.lexists(args.svg) and not args.svg.is_dir():
        raise ConfigurationError(f"--svg is {str(args.svg)!r}, which is a file; it must be a folder.")
    if args.page:
        text_before(args.page)


def text_before(page: Path) -> str:
    """What a page has before its results."""
    try:
        return page.read_text(encoding="utf-8").partition(MARK)[0] if page.exists() else ""
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--page is {str(page)!r}, which cannot be read as text ({error}).") from error


def rerun(name: str, scale: Scale, args: argparse.Namespace, console: Console) -> Figure:
    """The jobs of a figure on processes or a cluster, with a bar if this is a terminal."""
    make_jobs, make_figure = FIGURES[name]
    jobs = make_jobs(scale)
    columns = TextColumn("Figure {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=len(jobs))
        results = dict(run_jobs(jobs, args.jobs, lambda: progress.advance(bar), args.cluster))
    return make_figure({key: results[key] for key in jobs})


def table_1() -> Figure:
    """Models, machines, and how many slots they have: the paper's Table 1 beside bytes worked out from shapes."""
    figure = Figure("table1", "Models, and the memory of their servers (the paper's Table 1)")
    paper = {"OPT-13B": (26, 12), "OPT-66B": (132, 21), "OPT-175B": (346, 264)}
    for name, (parameters, memory) in paper.items():
        server = SERVERS[name]
        sizes = Sizes.of(find_architecture(name))
        token = 4 * sizes.num_layers * sizes.num_kv_heads * sizes.head_size
        figure.rows.append(Row(f"{name}: parameters, GB", 2 * sizes.num_parameters / 1e9, parameters, 0.1))
        figure.rows.append(Row(f"{name}: slots in {memory} GiB", memory * 2**30 / token, server.num_slots, 0.1))
    figure.notes.append(
        "The paper's GB are 10 ** 9 bytes where it speaks of parameters, and 2 ** 30 where it speaks of the cache. All "
        "simulations have its number of slots."
    )
    return figure


def show(figure: Figure, console: Console) -> None:
    grid = Grid(title=f"{name_of(figure)}: {figure.title}", box=box.SIMPLE)
    grid.add_column("")
    for heading in ("simulated", "paper", "off", ""):
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in figure.rows:
        grid.add_row(*cells(row))
    print_whole(console, grid)
    for note in figure.notes:
        console.print(note, style="dim")
    console.print()


def name_of(figure: Figure) -> str:
    return "Table 1" if figure.name == "table1" else f"Figure {figure.name}"


def cells(row: Row) -> tuple[str, str, str, str, str]:
    paper = (
        ""
        if row.paper is None
        else " to ".join(map(number, row.paper if isinstance(row.paper, tuple) else [row.paper]))
    )
    off = "" if row.paper is None else f"{100 * row.off:+.0f} %"
    return row.what, number(row.simulated), paper, off, row.verdict


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def save_pictures(figure: Figure, folder: Path) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(figure.pictures):
            (folder / picture_name(figure, i)).write_text(svg(picture), encoding="utf-8")


def picture_name(figure: Figure, i: int) -> str:
    return f"figure{figure.name}_{i}.svg"


def page(figures: list[Figure], args: argparse.Namespace) -> str:
    """All results as Markdown, which a book can include."""
    folder = f"{os.path.relpath(args.svg, args.page.parent)}/" if args.svg else ""
    parts = claims(figures) if len(figures) > 1 else []
    for figure in figures:
        parts.append(f"## {name_of(figure)}: {figure.title}\n")
        judged = [row for row in figure.rows if row.paper is not None]
        parts.append("| | simulated | paper | off | |\n|---|---|---|---|---|")
        parts += [f"| {' | '.join(cells(row))} |" for row in (judged or figure.rows)]
        parts.append("")
        parts += [f"{note}\n" for note in figure.notes]
        parts += [
            f"![{picture.title}]({folder}{picture_name(figure, i)})\n" for i, picture in enumerate(figure.pictures)
        ]
    return "\n".join(parts) + "\n"


def claims(figures: list[Figure]) -> list[str]:
    """Every number that the paper's text claims, beside ours, as lines of Markdown."""
    lines = ["## The paper's claims, one by one\n", "| figure | the paper says | here | off | may be off by | |"]
    lines.append("|---|---|---|---|---|---|")
    for figure in figures:
        for row in figure.rows:
            if row.claim:
                _, ours, _, off, verdict = cells(row)
                verdict += f". {row.why}" if verdict == "missed" and row.why else ""
                lines.append(
                    f"| {figure.name} | {row.claim} | {ours} | {off} | {100 * row.tolerance:.0f} % | {verdict} |"
                )
    return [*lines, ""]
