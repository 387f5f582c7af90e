"""Writes a run into files: a page, pictures, a terminal recording, the trace itself, a timeline.

Each writer takes the frames, the trace that they are from, and where to write.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from html import escape
from itertools import groupby
from operator import index
from pathlib import Path
from typing import Any

from rich.console import Console

from minipage.trace.drawing import html
from minipage.trace.drawing.terminal import draw
from minipage.trace.recording.frames import ENDS, Frame, fullest, is_stop
from minipage.trace.recording.trace import Trace

WIDTH, HEIGHT = 100, 36  # cells of a picture
SECONDS_A_FRAME = 1.0  # in a terminal recording
MICROSECONDS_A_STEP = 1000  # in a timeline, where steps are what counts
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<style>{styles}
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
</style>
<rect width="{width}" height="{height}" rx="8" fill="#1d1f21"/>
<g transform="translate({terminal_x}, {terminal_y})">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
</svg>
"""


def picture(frame: Frame, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The terminal's picture of a frame as an SVG, with no font to fetch."""
    console = Console(
        width=width, height=height, record=True, file=io.StringIO(), color_system="truecolor", force_jupyter=False
    )
    console.print(draw(frame, width, height))
    svg = console.export_svg(title="", code_format=SVG, unique_id=f"s{frame.step}{frame.phase}")
    return svg.replace("<style>", f"<title>step {frame.step}, {escape(frame.phase)}</title>\n<style>", 1)


def write_html(frames: list[Frame], trace: Trace, path: Path) -> None:
    still = picture(fullest(frames)) if frames else ""
    onward = trace.header.get("next")
    if onward and trace.header.get("in_folder"):  # where its page lies beside this one
        onward = onward | {"href": f"{onward['name']}.html"}
    html.write_page(frames, path, trace.title or html.TITLE, trace.header.get("kernel", ""), still, onward)


def write_svg(frames: list[Frame], trace: Trace, path: Path) -> None:
    """A folder with a picture of each step, of each half of one that has two, and of each look inside attention."""
    path.mkdir(parents=True, exist_ok=True)
    for frame in filter(is_stop, frames):
        look = f"-attend-{len(frame.attention.steps) + bool(frame.attention.kernel)}" if frame.attention else ""
        half = f"-{frame.phase}" if frame.phase in ("before", "copy") else ""  # which comes first, sorted by name too
        (path / f"step-{frame.step:04}{look}{half}.svg").write_text(picture(frame), encoding="utf-8")


def write_json(frames: list[Frame], trace: Trace, path: Path) -> None:
    trace.save(path)


def write_cast(frames: list[Frame], trace: Trace, path: Path) -> None:
    """A recording for `asciinema play` (asciicast, version 2)."""
    lines: list[Any] = [{"version": 2, "width": WIDTH, "height": HEIGHT, "title": trace.title}]
    for i, frame in enumerate(filter(is_stop, frames)):
        console = Console(width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        console.print(draw(frame, WIDTH, HEIGHT), end="")
        text = console.file.getvalue().rstrip("\n").replace("\n", "\r\n")  # type: ignore[attr-defined]
        lines.append([i * SECONDS_A_FRAME, "o", f"\x1b[H\x1b[2J{text}"])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_timeline(frames: list[Frame], trace: Trace, path: Path) -> None:
    """What each sequence did when, for chrome://tracing and ui.perfetto.dev. A step counts as one millisecond."""
    ends = [frame for frame in frames if frame.phase in ENDS]
    facts: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "minipage"}}]
    states: dict[str, list[tuple[int, str]]] = {}
    for frame in ends:
        start = (frame.step - 1) * MICROSECONDS_A_STEP
        facts.append(
            {"ph": "C", "pid": 1, "ts": start, "name": "blocks used", "args": {"blocks": frame.num_used_blocks}}
        )
        computing = {chunk.label: chunk for chunk in frame.chunks}
        for seq in frame.sequences:
            chunk = computing.get(seq.label)
            doing = seq.status if chunk is None else "decode" if chunk.num_tokens == 1 else "prefill"
            states.setdefault(seq.label, []).append((frame.step, doing))
    for number, (label, seen) in enumerate(states.items(), 1):
        facts.append({"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": label}})
        for doing, group in groupby(seen, key=lambda pair: pair[1]):
            steps = [step for step, _ in group]
            start = (steps[0] - 1) * MICROSECONDS_A_STEP
            length = (steps[-1] - steps[0] + 1) * MICROSECONDS_A_STEP
            facts.append({"ph": "X", "pid": 1, "tid": number, "ts": start, "dur": length, "name": doing})
    path.write_text(json.dumps({"traceEvents": facts, "displayTimeUnit": "ms"}, default=index), encoding="utf-8")


WRITERS: dict[str, Callable[[list[Frame], Trace, Path], None]] = {
    "html": write_html,
    "svg": write_svg,
    "json": write_json,
    "cast": write_cast,
    "timeline": write_timeline,
}
SUFFIXES = {"html": ".html", "svg": "", "json": ".jsonl", "cast": ".cast", "timeline": ".json"}  # svg: a folder
