"""The trace's page for a playground: the same drawing, the stream that pushes frames to it, and what can be touched."""

from __future__ import annotations

from importlib.resources import files

from minipage.trace.drawing.html import More, page
from minipage.trace.watching.live_page import part


def play_page(subtitle: str) -> str:
    """It is whole, except for what the stream brings."""
    script = part("stream.js") + own("play.js") + own("play_beside.js")
    return page((), "minipage, to play with", subtitle, more=More(own("play.css"), own("play.html"), script))


def own(name: str) -> str:
    return files("minipage.play").joinpath(name).read_text(encoding="utf-8")
