"""Writes what the demo has recorded into files: one story, or all of them with an index."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from minipage.errors import ConfigurationError
from minipage.languages import tell
from minipage.output import writing
from minipage.trace.drawing.front import Card, front, front_page
from minipage.trace.playing.scenarios import DEFAULT, SCENARIOS
from minipage.trace.playing.spinner import spinner
from minipage.trace.recording.frames import Frame
from minipage.trace.recording.trace import Trace


def export(frames: list[Frame], trace: Trace, files: dict[str, str]) -> None:
    """Write each kind of file that is wanted, and say so."""
    from minipage.trace.drawing import exports

    for kind, path in files.items():
        writer: Callable[[list[Frame], Trace, Path], None] = exports.WRITERS[kind]
        with spinner(f"writing {path}"), writing(path):
            writer(frames, trace, Path(path))
        print(f"wrote {path}")


def export_all(
    folders: dict[str, str], write: Callable[[str, dict[str, str]], None], lessons: Sequence[Card] = ()
) -> None:
    """Write every scenario, into a folder for each kind of file, and an index of the pages.

    `write` runs a story and writes its files. Raises ConfigurationError if no kind is asked for.
    """
    from minipage.trace.drawing.exports import SUFFIXES

    if not folders:
        raise ConfigurationError("all scenarios can only be written, not shown: add `--svg FOLDER` or `--html FOLDER`.")
    for folder in folders.values():
        with writing(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
    for name in SCENARIOS:
        write(name, {kind: str(Path(folder) / (name + SUFFIXES[kind])) for kind, folder in folders.items()})
    if "html" in folders:
        index = Path(folders["html"]) / "index.html"
        document = front_page(story_cards(Path(folders["html"])), lessons, f"{DEFAULT}.html")
        index.write_text(document, encoding="utf-8")
        print(f"open {index}")


def story_cards(folder: Path, address: str = "") -> list[Card]:
    """A card for each story; `folder` has their pages, and `address` is what a link to it begins with."""
    cards = []
    for story in SCENARIOS.values():
        page = (folder / f"{story.name}.html").read_text(encoding="utf-8")
        still = re.search(r'<img src="(data:image/svg\+xml;base64,[^"]*)"', page)
        picture = still[1] if still else ""
        about = tell(story.about)
        about = f"{about[0].upper()}{about[1:]}."
        cards.append(Card(tell(story.title), about, f"{address}{story.name}.html", picture=picture))
    return cards


def book_front(folder: Path, address: str, lessons: Sequence[Card]) -> str:
    """The front of the book, for a page that has its own head: `folder` has the stories, which lie at `address`."""
    return front(story_cards(folder, address), lessons, f"{address}{DEFAULT}.html")
