"""Draws memories side by side: the same requests in pieces, reserved in three ways, and in blocks.

longest case   7 run  57 wait   0 done     9% words  15% later  68% never   9% free
A▒▒▒×××××××××××××B▒▒▒▒▒××××××××××…          a letter: its words; ▒ its words to come; × nothing, ever; ░ free
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from rich.text import Text

from minipage.simulate.baselines import SlotUsage
from minipage.trace.drawing.glyphs import BOLD, DIM, Glyphs, ink_of, letter_of, letters_explained, style_of
from minipage.trace.recording.frames import Frame, Segment

NAME = 14  # columns of the name of a memory
USES = ("words", "later", "never", "free")  # what the four shares of a memory are called, in their order


class Lane(NamedTuple):
    """One memory, whatever its kind."""

    name: str
    num_running: int
    num_waiting: int
    num_finished: int
    usage: SlotUsage
    num_slots: int
    segments: list[Segment]


def lanes_of(frame: Frame) -> list[Lane]:
    """The contiguous memories of a frame, and the engine's own."""
    lanes = [
        Lane(m.name, len(m.pieces), len(m.waiting), len(m.finished), m.usage, m.num_slots, m.segments)
        for m in frame.contiguous
    ]
    num_finished = sum(seq.status == "finished" for seq in frame.all_sequences)
    num_waiting = len(frame.waiting) + len(frame.swapped)
    num_slots = len(frame.blocks) * frame.block_size
    own = Lane("in blocks", len(frame.running), num_waiting, num_finished, frame.usage, num_slots, frame.segments)
    return [*lanes, own]


def lane_lines(frame: Frame, width: int, lines_per_lane: int, glyphs: Glyphs) -> list[Text]:
    """For each memory a line of figures, and then its slots in `lines_per_lane` lines."""
    told = []
    for lane in lanes_of(frame):
        told += [_figures(lane, width), *_bar(lane, width, lines_per_lane, glyphs)]
    return told


def legend(frame: Frame, glyphs: Glyphs) -> list[str]:
    """The first part is the one that nobody could do without."""
    letters = letters_explained(seq.label for seq in frame.all_sequences)
    return [
        f"A words ({letters})" if letters else "A words",
        f"{glyphs.empty} later",
        f"{glyphs.unused} never",
        f"{glyphs.free} free",
    ]


def _figures(lane: Lane, width: int) -> Text:
    counts = f"{lane.num_running:>2} run  {lane.num_waiting:>2} wait  {lane.num_finished:>2} done"
    shares = [f"{100 * slots / lane.num_slots:>2.0f}% {use}" for slots, use in zip(lane.usage, USES, strict=True)]
    text = Text.assemble((lane.name.ljust(NAME), BOLD), counts.ljust(25), (shares[0], BOLD))
    text.append(f"  {'  '.join(shares[1:])}")
    text.truncate(width)
    return text


def _bar(lane: Lane, width: int, num_lines: int, glyphs: Glyphs) -> list[Text]:
    """Each cell shows the slot in its middle."""
    signs = {"reserved": glyphs.empty, "internal": glyphs.unused}
    starts = [segment.start for segment in lane.segments]
    lines = []
    num_cells = width * num_lines
    for row in range(num_lines):
        line = Text()
        for cell in range(row * width, (row + 1) * width):
            slot = (2 * cell + 1) * lane.num_slots // (2 * num_cells)
            segment = lane.segments[i] if (i := bisect_right(starts, slot) - 1) >= 0 else None
            if segment is None or slot >= segment.start + segment.num_slots:
                line.append(glyphs.free, DIM)
            elif segment.use == "stored":
                line.append(letter_of(segment.label), style_of(segment.label, now=True))
            else:
                line.append(signs[segment.use], ink_of(segment.label))
        lines.append(line)
    return lines
