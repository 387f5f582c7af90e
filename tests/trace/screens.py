"""What a terminal of some size would show of a frame."""

import io

from rich.console import Console

from minipage.trace.drawing.glyphs import UNICODE
from minipage.trace.drawing.terminal import draw

SIZES = [(80, 24), (160, 48), (100, 36), (60, 20), (40, 16), (200, 70)]


def screen(frame, width=80, height=24, glyphs=UNICODE, **options):
    """The lines that a terminal of this size would show."""
    console = Console(width=width, height=height, file=io.StringIO(), **({"color_system": None} | options))
    console.print(draw(frame, width, height, glyphs))
    return console.file.getvalue().split("\n")[:-1]


def section(lines, title):
    """The lines from one rule to the next."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"── {title}"))
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("── ")), len(lines))
    return lines[start + 1 : end]
