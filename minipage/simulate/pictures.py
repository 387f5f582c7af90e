"""Lines and bars as SVG, in a few lines of text: no library is needed, and a page in light or dark can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

# Okabe and Ito, "Color Universal Design" (2008): they differ for every kind of colour vision.
COLOURS = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 280, 62, 150, 30, 46
STYLE = (
    "text{font:12px sans-serif;fill:#24292f}.axis{stroke:#24292f}.grid{stroke:#24292f;opacity:.15}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.axis,.grid{stroke:#e6edf3}}"
)


class Picture(NamedTuple):
    title: str
    x_name: str
    y_name: str
    series: Mapping[str, Sequence[tuple[float, float]]]  # name -> points (x, y)
    kind: Literal["lines", "bars"] = "lines"
    labels: Sequence[str] = ()  # of the bars, whose x are 0, 1, ...
    y_most: float | None = None  # what is above is cut off
    knees: Mapping[str, float] = {}  # name -> x at which its line turns up

    def numbers(self) -> dict[str, Any]:
        found = {"title": self.title, "x": self.x_name, "y": self.y_name, "series": dict(self.series)}
        return found | ({"knees": dict(self.knees)} if self.knees else {})


def svg(picture: Picture) -> str:
    """The picture as a complete SVG."""
    points = [point for series in picture.series.values() for point in series if all(map(math.isfinite, point))]
    highest = max((y for _, y in points), default=1.0)
    top = round_up(min(highest, picture.y_most or highest) or 1.0)
    is_bars = picture.kind == "bars"
    right = len(picture.labels) if is_bars else round_up(max((x for x, _ in points), default=1.0))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * x / right, TOP + height * (1 - min(y, top * 1.05) / top)

    parts = [*frame(picture, top, right, place)]
    for i, (name, series) in enumerate(picture.series.items()):
        colour = COLOURS[i % len(COLOURS)]
        y = TOP + 8 + 18 * i
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{y - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 28}" y="{y + 1}">{escape(name)}</text>')
        shown = [point for point in series if all(map(math.isfinite, point))]
        parts += bars(shown, i, len(picture.series), colour, place) if is_bars else lines(shown, colour, place)
        if name in picture.knees:
            parts.append(knee(picture.knees[name], top, colour, place))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f"<title>{escape(picture.title)}</title><style>{STYLE}</style>{''.join(parts)}</svg>\n"
    )


def frame(picture: Picture, top: float, right: float, place: Any) -> list[str]:
    (x0, y0), (x1, y1) = place(0, 0), place(right, top)
    parts = [
        f'<text x="{LEFT}" y="16" font-weight="bold">{escape(picture.title)}</text>',
        f'<text x="{(x0 + x1) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(picture.x_name)}</text>',
        f'<text transform="translate(14 {(y0 + y1) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(picture.y_name)}</text>",
        f'<path class="axis" fill="none" d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}"/>',
    ]
    for share in (0.25, 0.5, 0.75, 1.0):
        _, y = place(0, top * share)
        parts.append(f'<path class="grid" d="M{x0:.1f} {y:.1f}H{x1:.1f}"/>')
        parts.append(f'<text x="{x0 - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{top * share:.3g}</text>')
    if picture.kind == "bars":
        ticks = [(i + 0.5, label) for i, label in enumerate(picture.labels)]
    else:
        ticks = [(right * share, f"{right * share:.3g}") for share in (0, 0.25, 0.5, 0.75, 1.0)]
    for x, label in ticks:
        parts.append(
            f'<text x="{place(x, 0)[0]:.1f}" y="{y0 + 16:.1f}" text-anchor="middle">{escape(str(label))}</text>'
        )
    return parts


def lines(points: Sequence[tuple[float, float]], colour: str, place: Any) -> list[str]:
    places = [place(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def knee(at: float, top: float, colour: str, place: Any) -> str:
    (x, y0), (_, y1) = place(at, 0), place(at, top)
    return f'<path d="M{x:.1f} {y0:.1f}V{y1:.1f}" stroke="{colour}" stroke-dasharray="2 4"/>'


def bars(points: Sequence[tuple[float, float]], i: int, num_series: int, colour: str, place: Any) -> list[str]:
    parts = []
    for x, y in points:
        left, top = place(x + 0.1 + 0.8 * i / num_series, y)
        right, bottom = place(x + 0.1 + 0.8 * (i + 1) / num_series, 0)
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" height="{max(0, bottom - top):.1f}" '
            f'fill="{colour}"><title>{y:.4g}</title></rect>'
        )
        parts.append(f'<text x="{(left + right) / 2:.1f}" y="{top - 3:.1f}" text-anchor="middle">{y:.3g}</text>')
    return parts


def round_up(value: float) -> float:
    """The next number of 1, 1.5, 2, 3, 4, 5, 6, 8 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999)
