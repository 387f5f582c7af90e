"""Pictures of what was measured: SVG, one for light pages and one for dark ones.

A chart is numbers by label and by series. Bars show their value; lines are for a horizontal axis with an order. A
roofline (Williams, Waterman and Patterson 2009) shows how near programs come to what a machine could do: its memory
brings so many bytes a second, its arithmetic units do so many operations, and how many operations a program does with
each byte decides which of the two is its roof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

# Okabe and Ito, "Color Universal Design" (2008): they differ for every kind of colour vision; black is the text colour.
COLOURS = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442"
HATCHES = "", "///", "...", "\\\\\\", "xxx", "|||", "---"  # so that colour is not the only difference
MARKERS = "osD^vPX"
THEMES = {"light": ("#ffffff", "#24292f"), "dark": ("#0d1117", "#e6edf3")}  # name -> background, text


class Chart(NamedTuple):
    title: str
    unit: str  # of the numbers: the vertical axis
    labels: Sequence[str]  # along the horizontal axis
    series: Mapping[str, Sequence[float | None]]  # name -> a number for each label; None: not measured
    kind: Literal["bars", "lines"] = "bars"
    goal: float | None = None  # drawn as a dashed line
    goal_name: str = "goal"
    logarithmic: bool = False


class Roofline(NamedTuple):
    title: str
    bytes_per_second: float  # of the memory
    operations_per_second: float  # of the arithmetic units
    series: Mapping[str, Sequence[tuple[float, float]]]  # name -> (operations for each byte, operations a second)


def save_charts(charts: Sequence[Chart | Roofline], folder: Path, name: str) -> list[Path]:
    """Write all charts of a benchmark, one below the other, as `name-light.svg` and `name-dark.svg`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot: no window, no global state

    paths = []
    for theme, (background, text) in THEMES.items():
        style = {
            "svg.hashsalt": name,  # the same picture gives the same file
            "svg.fonttype": "none",  # text stays text
            "font.family": "sans-serif",
            "hatch.linewidth": 0.6,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), text),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "hatch.color"), background),
            **{"legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False},
        }
        with rc_context(style):
            figure = Figure(figsize=(9, 3.6 * len(charts)), layout="constrained")
            for axes, chart in zip(figure.subplots(len(charts), squeeze=False)[:, 0], charts, strict=True):
                if isinstance(chart, Roofline):
                    draw_roofline(axes, chart, text)
                else:
                    draw(axes, chart, text)
            paths.append(folder / f"{name}-{theme}.svg")
            figure.savefig(paths[-1], metadata={"Date": None})
    return paths


def draw(axes: Any, chart: Chart, text: str) -> None:
    width = 0.8 / len(chart.series)
    for i, (name, numbers) in enumerate(chart.series.items()):
        colour = COLOURS[i % len(COLOURS)]
        shown = [float("nan") if number is None else number for number in numbers]
        if chart.kind == "lines":
            axes.plot(range(len(shown)), shown, MARKERS[i % len(MARKERS)] + "-", color=colour, label=name)
        else:
            places = [x + (i - (len(chart.series) - 1) / 2) * width for x in range(len(shown))]
            hatch, alpha = HATCHES[i % len(HATCHES)], 1 if i < len(COLOURS) else 0.5
            bars = axes.bar(places, shown, width * 0.92, color=colour, hatch=hatch, alpha=alpha, label=name)
            labels = ["" if n is None else f"{n:.3g}" if n < 1000 else f"{n:,.0f}" for n in numbers]
            axes.bar_label(bars, labels, fontsize=6.5, rotation=90 if len(chart.labels) * len(chart.series) > 24 else 0)
    if chart.goal is not None:
        axes.axhline(chart.goal, color=text, linewidth=1, linestyle="--", label=f"{chart.goal_name}: {chart.goal:.3g}")
    if chart.logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(chart.labels)), chart.labels)
    axes.set(title=chart.title, ylabel=chart.unit)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def draw_roofline(axes: Any, chart: Roofline, text: str) -> None:
    """Operations for each byte along the horizontal axis, 10 ** 12 operations a second along the vertical one."""
    dots = [dot for series in chart.series.values() for dot in series]
    left = min(intensity for intensity, _ in dots) / 2
    corner = chart.operations_per_second / chart.bytes_per_second  # from here on the arithmetic is the roof
    right = max(2 * corner, *(2 * intensity for intensity, _ in dots))
    roof = [min(x * chart.bytes_per_second, chart.operations_per_second) / 1e12 for x in (left, corner, right)]
    axes.plot((left, corner, right), roof, color=text, linewidth=1, label="roof: memory, then arithmetic")
    for i, (name, series) in enumerate(chart.series.items()):
        marker, colour = MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]
        faces = colour if i < len(MARKERS) else "none"
        x, y = [intensity for intensity, _ in series], [speed / 1e12 for _, speed in series]
        axes.plot(x, y, marker + ":", color=colour, markerfacecolor=faces, markersize=6, linewidth=0.8, label=name)
    axes.set(title=chart.title, xlabel="operations for each byte", ylabel="TFLOP/s", xscale="log", yscale="log")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
