"""Draws the physical memory of a frame: every block by number, the free queue, and what paging saves.

     0    1    2    3    4              the number of a block
    A█   A▅*  B█   ··   C█2             whose it is, how full; * written in this step; 2 held by two block tables

With more blocks than fit, each gets less room, down to one letter; with room to spare, the words themselves are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from rich.text import Text

from minipage.errors import count
from minipage.memory import blocks_needed
from minipage.trace.drawing.glyphs import ALERT, BOLD, DIM, Glyphs, ink_of, letter_of, style_of, visible
from minipage.trace.drawing.request_lines import beside, boxed, words, written_now
from minipage.trace.recording.frames import BlockFrame, Frame, SequenceFrame
from minipage.trace.recording.windows import held

Home: TypeAlias = tuple[SequenceFrame, int, int]  # whose words a block holds, its logical and its physical number

WORDS_CELL = 26  # columns that a block takes when its words are shown
BOX_CELL = 23  # and when they are shown in a box of their own
BAR_LABEL = 11
REUSED = "r"  # a block that somebody has just found there
CACHED = "cc"  # a free block whose words the prefix cache can still find


def pool_lines(frame: Frame, width: int, max_lines: int, glyphs: Glyphs, roomy: bool) -> list[Text]:
    """The blocks, in the roomiest way that takes at most `max_lines`."""
    num_blocks = len(frame.blocks)
    for layout in LAYOUTS:
        at_best = blocks_needed(num_blocks, max(1, width // layout.columns)) * layout.lines
        if at_best <= max_lines and (roomy or not layout.needs_room):
            lines = layout.grid(frame, width, glyphs)
            if len(lines) <= max_lines:
                return lines
    shown = (max_lines - 1) * width
    lines = _letters_grid(replace(frame, blocks=frame.blocks[:shown]), width, glyphs)
    return [*lines, Text(f"{glyphs.ellipsis} and {count(num_blocks - shown, 'more block')}", DIM)]


def free_queue_line(frame: Frame, width: int, glyphs: Glyphs) -> Text:
    """Free blocks in the order in which they will be taken."""
    numbers = " ".join(map(str, frame.free_queue[: width // 2])) or "empty"
    line = f"free queue, next first: {numbers}"
    if len(line) > width:
        line = line[: width - len(glyphs.ellipsis)].rsplit(" ", 1)[0] + glyphs.ellipsis
    return Text(line)


def bar_lines(frame: Frame, width: int, glyphs: Glyphs) -> list[Text]:
    """Two bars of one scale: the memory in use, and what the same requests would take in one piece each."""
    total = len(frame.blocks)
    contiguous = frame.num_contiguous_blocks
    cells = max(10, min(80, width - BAR_LABEL - 42))
    used = f" {frame.num_used_blocks} of {count(total, 'block')}, {count(frame.num_wasted_slots, 'empty slot')} in them"
    reserved = Text(f" {count(contiguous, 'block')} reserved", ALERT if contiguous > total else "")
    why = ": more than there are" if contiguous > total else ", for the longest case"
    if contiguous and BAR_LABEL + cells + reserved.cell_len + len(why) <= width:
        reserved.append(why)
    if BAR_LABEL + cells + len(used) > width:
        used = f" {frame.num_used_blocks} of {count(total, 'block')}"

    slots = total * frame.block_size
    scale = cells / (max(total, contiguous) * frame.block_size)
    paged = _bar(_shares_paged(frame), slots, cells, scale, glyphs)
    one_piece = _bar(_shares_in_one_piece(frame), slots, cells, scale, glyphs)
    return [
        Text.assemble("paged".ljust(BAR_LABEL), paged, used),
        Text.assemble("contiguous".ljust(BAR_LABEL), one_piece, reserved),
    ]


def _shares_in_one_piece(frame: Frame) -> list[tuple[str, int, int]]:
    """For each running request: label, slots that hold a token, slots reserved."""
    running = (seq for seq in frame.sequences if seq.label in frame.running)
    return [(seq.label, seq.num_computed_tokens, seq.max_num_tokens) for seq in running]


def _shares_paged(frame: Frame) -> list[tuple[str, int, int]]:
    """For each request: label, slots that hold a token, slots taken. A shared block counts for its first holder."""
    shares = []
    for seq in frame.sequences:
        own = [frame.blocks[block] for block in held(seq.blocks) if frame.blocks[block].holders[0] == seq.label]
        shares.append((seq.label, sum(block.num_filled for block in own), len(own) * frame.block_size))
    return shares


def _bar(shares: list[tuple[str, int, int]], total: int, cells: int, scale: float, glyphs: Glyphs) -> Text:
    """One piece per request, which starts with its letter; then what is free of `total` slots."""
    bar = Text()
    start = 0
    for label, stored, taken in shares:
        signs = glyphs.stored * round((start + stored) * scale)
        signs += glyphs.empty * (round((start + taken) * scale) - len(signs))
        piece = signs[round(start * scale) :]
        name = label if len(label) <= len(piece) else letter_of(label)[: len(piece)]
        bar.append(name, style_of(label, now=True) + BOLD).append(piece[len(name) :], style_of(label))
        start += taken
    bar.append(glyphs.free * (round(total * scale) - len(bar)), DIM)
    return bar.append(" " * (cells - len(bar)))


def _numbered_grid(frame: Frame, width: int, glyphs: Glyphs) -> list[Text]:
    """Two lines a row: the numbers, and below each the owner and fill of that block."""
    cells = _cells(frame, glyphs)
    cell_width = 1 + max(3, *(cell.cell_len for cell in cells), len(str(len(cells) - 1)) + 1)
    lines = []
    for row in _rows(len(cells), width // cell_width):
        numbers = Text(style=DIM)
        owners = Text()
        for block in row:
            numbers.append(f"{block:>2}".ljust(cell_width))
            owners.append(cells[block]).append(" " * (cell_width - cells[block].cell_len))
        lines += [numbers, owners]
    return lines


def _narrow_grid(frame: Frame, width: int, glyphs: Glyphs) -> list[Text]:
    """One line a row, which starts with the number of its first block."""
    label = len(str(len(frame.blocks))) + 1
    cells = _cells(frame, glyphs)
    cell_width = 1 + max(cell.cell_len for cell in cells)
    per_row = (width - label) // cell_width // 5 * 5
    lines = []
    for row in _rows(len(cells), per_row):
        line = Text.assemble((f"{row[0]:>{label - 1}} ", DIM))
        for block in row:
            line.append(cells[block]).append(" " * (cell_width - cells[block].cell_len))
        lines.append(line)
    return lines


def _letters_grid(frame: Frame, width: int, glyphs: Glyphs) -> list[Text]:
    """One letter a block."""
    written = written_now(frame)
    return [
        Text.assemble(*(_letter(frame.blocks[block], block in written, glyphs) for block in row))
        for row in _rows(len(frame.blocks), width)
    ]


def _words_grid(frame: Frame, width: int, glyphs: Glyphs) -> list[Text]:
    """The number, the owner and the words of every block, in one line each."""
    homes = _homes(frame)
    cells = _cells(frame, glyphs)
    drawn = []
    for block, cell in enumerate(cells):
        drawn.append(Text.assemble((f"{block:>3} ", DIM), cell))
        if block in homes:
            drawn[-1].append(" ").append(words(*homes[block], frame, glyphs, stored=True))
    columns = min(width, max(WORDS_CELL, *(cell.cell_len + 1 for cell in drawn)))  # no word is cut
    lines = []
    for row in _rows(len(cells), width // columns):
        line = Text()
        for block in row:
            drawn[block].truncate(columns - 1, pad=True)
            line.append(drawn[block]).append(" ")
        lines.append(line)
    return lines


def _boxes_grid(frame: Frame, width: int, glyphs: Glyphs) -> list[Text]:
    """A box per block: its number, its words, and whose logical block it is."""
    homes = _homes(frame)
    cells = _cells(frame, glyphs)
    lines = []
    longest = max((words(*home, frame, glyphs, stored=True).cell_len for home in homes.values()), default=0)
    per_row = max(1, width // max(BOX_CELL, longest + 4))  # no word is cut
    inner = width // per_row - 3  # two edges and a space
    for row in _rows(len(cells), per_row):
        drawn, *others = (_box(frame, homes.get(block), block, cells[block], inner, glyphs) for block in row)
        for box in others:
            drawn = beside(drawn, box)
        lines += drawn
    return lines


def _box(frame: Frame, home: Home | None, number: int, cell: Text, inner: int, glyphs: Glyphs) -> list[Text]:
    head = Text(f" block {number} ", BOLD if home else DIM)
    if home is None:
        block = frame.blocks[number]
        known = [visible(word, glyphs) for word in block.tokens]
        slots = Text(glyphs.divider.join([*known, *glyphs.slot * (frame.block_size - len(known))]), DIM)
        foot = (
            Text.assemble(" ", cell, " ") if block.ref_count else Text(f" {CACHED} free " if block.cached else " free ")
        )
        foot.stylize(DIM)
        return boxed(head, slots, foot, inner, DIM, glyphs)
    seq, logical, _ = home
    foot = Text.assemble(" ", cell, (f" logical {logical} ", DIM))
    return boxed(head, words(*home, frame, glyphs, stored=True), foot, inner, ink_of(seq.label), glyphs)


def _homes(frame: Frame) -> dict[int, Home]:
    """Of each physical block, whose words it holds."""
    tables = [(seq, table) for seq in reversed(frame.sequences) for table in seq.tables]
    return {block: (seq, i, block) for seq, table in tables for i, block in enumerate(table)}


def _rows(num_blocks: int, per_row: int) -> list[range]:
    per_row = max(1, per_row)
    return [range(first, min(first + per_row, num_blocks)) for first in range(0, num_blocks, per_row)]


def _cells(frame: Frame, glyphs: Glyphs) -> list[Text]:
    """For each block its owner, its fill, and a mark: a star if it was written, a number if it is shared, and
    what is to be seen rarely: who wants to write into a shared one, what is a copy, what is reused.

    (A shared block is never written, so one place is enough for both.)
    """
    written, size = written_now(frame), frame.block_size
    pending = Counter(slot // size for slot in frame.pending_slots)
    wanted = {slot // size for slot in frame.wanted_slots}
    sources = {to: f"<{source}" for source, to in frame.copies} if frame.phase == "copy" else {}
    cells = []
    for i, block in enumerate(frame.blocks):
        there = replace(block, num_filled=block.num_filled - pending[i]) if pending[i] else block
        mark = glyphs.wanted * (i in wanted) + sources.get(i, "") + REUSED * (i in frame.reused)
        cells.append(_cell(there, size, i in written, glyphs).append(mark, BOLD))
    return cells


def _cell(block: BlockFrame, block_size: int, written: bool, glyphs: Glyphs) -> Text:
    if not block.ref_count:
        return Text(CACHED if block.cached else glyphs.slot * 2, DIM)
    owner = block.holders[0] if block.holders else "?"  # held by something that is no sequence
    fill = glyphs.fills[-(-block.num_filled * len(glyphs.fills) // block_size) - 1] if block.num_filled else glyphs.slot
    cell = Text.assemble((owner, style_of(owner, now=written) + BOLD), (fill, style_of(owner)))
    return cell.append(str(block.ref_count) if block.ref_count > 1 else "*" * written, BOLD)


def _letter(block: BlockFrame, written: bool, glyphs: Glyphs) -> Text:
    if not block.ref_count:
        return Text(CACHED[0] if block.cached else glyphs.slot, DIM)
    owner = block.holders[0] if block.holders else "?"
    return Text(letter_of(owner), style_of(owner, now=written) + BOLD)


class Layout(NamedTuple):
    """A way to draw the pool."""

    grid: Callable[[Frame, int, Glyphs], list[Text]]
    columns: int  # that a block takes at least
    lines: int  # that a row of blocks takes
    needs_room: bool  # for large screens only


LAYOUTS = (  # the roomiest first
    Layout(_boxes_grid, BOX_CELL, 3, True),
    Layout(_words_grid, WORDS_CELL, 1, True),
    Layout(_numbered_grid, 4, 2, False),
    Layout(_narrow_grid, 3, 1, False),
    Layout(_letters_grid, 1, 1, False),
)
