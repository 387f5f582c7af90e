"""Makes the front page: the living trace of one story, and a card for each story and each lesson.

    front_page(stories, lessons, living="continuous-batching.html")

The book begins with it, and it is the index of a folder that `demo all --html FOLDER` writes. What is alive is the page
of that story in a frame of its own, which plays until somebody takes over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import NamedTuple


class Card(NamedTuple):
    """One thing to look at."""

    title: str
    about: str = ""
    href: str = ""  # where it is; empty: nowhere here
    command: str = ""  # what shows it
    number: str = ""  # of a lesson
    picture: str = ""  # the address of an image


def front_page(stories: Iterable[Card], lessons: Iterable[Card], living: str, title: str = "minipage") -> str:
    """A whole document. `living` is the address of the page that plays."""
    parts = {"title": escape(title), "front": front(stories, lessons, living)}
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _part("front.html"))


def front(stories: Iterable[Card], lessons: Iterable[Card], living: str) -> str:
    """The same as a piece of HTML with its looks, for a page that has a head and a title of its own."""
    return "\n".join([
        f"<style>\n{_part('front.css')}</style>",
        f'<iframe class="living" src="{escape(living)}?embed&amp;play" title="Three requests share a small memory" '
        'loading="eager"></iframe>',
        '<h2>The stories</h2>\n<ul class="cards stories">',
        *map(_card, stories),
        '</ul>\n<h2>The lessons</h2>\n<ol class="cards lessons">',
        *map(_card, lessons),
        "</ol>",
    ])  # fmt: skip


def _card(card: Card) -> str:
    picture = f'<img src="{escape(card.picture)}" alt="" loading="lazy">' if card.picture else ""
    number = f'<span class="number">{escape(card.number)}</span> ' if card.number else ""
    title = f"{number}{escape(card.title)}"
    link = f'<a href="{escape(card.href)}">{title}</a>' if card.href else title
    about = f"<p>{escape(card.about)}</p>" if card.about else ""
    command = f"<p><code>{escape(card.command)}</code></p>" if card.command else ""
    return f"<li>{picture}<h3>{link}</h3>{about}{command}</li>"


def _part(name: str) -> str:
    return files("minipage.trace.drawing").joinpath(name).read_text(encoding="utf-8")
