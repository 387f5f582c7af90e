"""The alphabet of the terminal pictures: symbols (with an ASCII twin for each), and the colour of each letter.

A request is always a letter and a colour, never a colour alone. The colours are the palette of Okabe and Ito ("Color
Universal Design", 2008), which people with any kind of colour blindness can tell apart, without its black and dark
blue, which cannot be read on a dark ground.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from minipage.trace.recording.wording import printable

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#D55E00")  # orange, sky blue, green, purple, …
GROUND = "#262626"  # behind everything coloured, so that it reads the same on dark and on light screens
DIM = Style(dim=True)
BOLD = Style(bold=True)
NEWEST = Style(bold=True, underline=True)
ALERT = Style(bold=True, color=PALETTE[-1])


class Glyphs(NamedTuple):
    """One set of symbols. The ASCII ones take the same places where a screen or a file cannot show the others."""

    fills: str  # a block from nearly empty to full
    stored: str  # in a bar: a slot with a token
    empty: str  # in a bar: a slot that is taken and holds nothing
    free: str  # in a bar: a slot of a free block
    unused: str  # in a bar: a slot that is taken and will never hold anything
    slot: str  # an empty slot in a box
    wanted: str  # one that somebody is about to write, and that others share
    divider: str  # between two slots
    arrow: str  # from a logical block to a physical one
    reading: str  # behind the block that attention reads
    newest: str  # before what is generated
    newline: str
    tab: str
    ellipsis: str
    line: str  # of rules and boxes
    corners: str  # top left, top right, bottom left, bottom right
    bullet: str
    play: str
    pause: str
    turning: str  # one after the other while something takes long


UNICODE = Glyphs(
    "▁▂▃▄▅▆▇█", "█", "▒", "░", "×", "·", "?", "│", "→", "◂ read", "▸", "⏎", "⇥", "…", "─", "┌┐└┘", "•", "▶", "‖",
    "⠋⠙⠹⠸⠴⠦⠧⠇",
)  # fmt: skip
ASCII = Glyphs(
    ".:-=+oO#", "#", "-", ".", "x", ".", "?", "|", "->", "< read", ">", "\\n", "\\t", "..", "-", "++++", "*", ">", "||",
    "|/-\\",
)  # fmt: skip


def glyphs_for(encoding: str) -> Glyphs:
    """The symbols that text in `encoding` can hold."""
    try:
        "".join(UNICODE).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def visible(text: str, glyphs: Glyphs) -> str:
    """`text` on one line: newlines, tabs and control characters as signs, and no letter that cannot be shown."""
    text = printable(text.replace("\n", glyphs.newline).replace("\t", glyphs.tab))
    return text.encode("ascii", "backslashreplace").decode() if glyphs is ASCII else text


def style_of(label: str, *, now: bool = False) -> Style:
    """The colour of a request; `now` turns it inside out, for what happened in this step."""
    index = ord(label[-1]) - ord("A")
    return Style(color=PALETTE[index % len(PALETTE)], bgcolor=GROUND, reverse=now)


def letter_of(label: str) -> str:
    """A request in a single cell: A to Z, then a to z for AA to AZ. All later requests share one sign."""
    return label if len(label) == 1 else label[1].lower() if len(label) == 2 and label[0] == "A" else "+"


def letters_explained(labels: Iterable[str]) -> str:
    """What the signs of `letter_of` stand for that are not the letter itself."""
    signs = {letter_of(label) for label in labels if len(label) > 1}
    return ", ".join(["a: AA"] * bool(signs) + ["+: BA"] * ("+" in signs))


def ink_of(label: str) -> Style:
    """The colour of a request for lines and signs on the screen's own ground."""
    return Style(color=style_of(label).color)


def chip(label: str) -> Text:
    """The letter of a request as a little plate."""
    return Text(f" {label} ", style_of(label, now=True) + BOLD)


def clip(text: str, width: int) -> str:
    """`text` in at most `width` cells, its end cut off."""
    return text if cell_len(text) <= width else set_cell_size(text, max(width, 0))


def clip_left(text: Text, width: int, glyphs: Glyphs) -> Text:
    """`text` in at most `width` cells, its beginning replaced by an ellipsis."""
    if text.cell_len <= width:
        return text
    start = len(text)
    room = width - len(glyphs.ellipsis)
    while start and cell_len(text.plain[start - 1 :]) <= room:
        start -= 1
    return Text.assemble((glyphs.ellipsis, DIM), text[start:])


def spread(left: Text, right: Text, width: int) -> Text:
    """One line with something at either end; the right one goes if there is no room for both."""
    gap = width - left.cell_len - right.cell_len
    return Text.assemble(left, " " * gap, right) if gap > 0 else left
