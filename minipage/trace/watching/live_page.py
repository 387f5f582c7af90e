"""The trace's page for an engine that runs: the same drawing, and a script that pushes frames to it as they come."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from minipage.trace.drawing.html import More, page

BODY = """
<section id="live" aria-label="The engine now">
  <p id="live-state" role="status">Connecting …</p>
  <form id="key" hidden>
    <input type="text" autocomplete="username" value="minipage" hidden>
    <label for="key-field">API key</label>
    <input id="key-field" type="password" autocomplete="current-password" required>
    <button>Show</button>
  </form>
  <ul id="numbers"></ul>
  <p id="privacy">{privacy}</p>
  <ol id="remembered" aria-label="Who gave way, newest first" tabindex="0"></ol>
</section>
"""
WITH_WORDS = "Whoever can open this page reads the prompts and the texts that are being served."
WITHOUT_WORDS = "Each dot is a token: the server shows nobody's words."


def live_page(subtitle: str, words: bool) -> str:
    """The page of `GET /`. It knows nothing of the engine: all of that comes as a stream, to those who may have it."""
    body = BODY.format(privacy=escape(WITH_WORDS if words else WITHOUT_WORDS))
    return page((), "minipage, live", subtitle, more=More(part("live.css"), body, part("stream.js") + part("live.js")))


def part(name: str) -> str:
    return files("minipage.trace.watching").joinpath(name).read_text(encoding="utf-8")
