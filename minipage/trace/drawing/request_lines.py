"""Draws one request: its text so far, and its logical blocks with the words in them, each leading to a physical block.

On a small screen a block is a piece of a line, on a large one a box:

    [First│ Cit│izen│:]→7          ┌ logical 0 ─────────┐
                                   │First│ Cit│izen│:   │
                                   └────────→ block 7 ──┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.cells import chop_cells
from rich.style import Style
from rich.text import Text

from minipage.errors import count
from minipage.memory import blocks_needed
from minipage.trace.drawing.glyphs import BOLD, DIM, NEWEST, Glyphs, chip, clip_left, ink_of, spread, style_of, visible
from minipage.trace.recording.frames import Frame, SequenceFrame
from minipage.trace.recording.windows import group_name, held

INDENT = 4  # the letter and a space


class Box(NamedTuple):
    """A logical block, ready to be drawn."""

    logical: int
    physical: int
    words: Text  # slot by slot, empty ones too
    mark: str  # that it was written in this step, or is being read inside attention
    label: str  # whose


def request_lines(
    seq: SequenceFrame, frame: Frame, width: int, height: int, glyphs: Glyphs, roomy: bool = False
) -> list[Text]:
    """At most `height` lines: the text, then as many rows of blocks as there is room for, the last ones first."""
    if seq.status == "finished":
        return _finished_lines(seq, width, height, glyphs)
    if height == 1 and seq.blocks:
        rows = _rows(seq, frame, width - INDENT, glyphs, roomy=False)
        return [Text.assemble(chip(seq.label), " ", _last_rows(rows, 1, width - INDENT, glyphs)[0])]
    lines = [_text_line(seq, width, glyphs)]
    if not seq.blocks:
        lines += [_indent(Text(reason, DIM)) for reason in _why_no_blocks(seq, frame)]
        return lines[:height]
    rows = _rows(seq, frame, width - INDENT, glyphs, roomy)
    room = height - 1
    if len(rows) > room:
        rows = _rows(seq, frame, width - INDENT, glyphs, roomy=False)
    return lines + [_indent(row) for row in _last_rows(rows, room, width - INDENT, glyphs)]


def _last_rows(rows: list[Text], room: int, width: int, glyphs: Glyphs) -> list[Text]:
    """The last `room` rows; if that is not all, they begin with an ellipsis."""
    if len(rows) <= room:
        return rows
    first, *others = rows[len(rows) - room :]
    return [clip_left(Text.assemble(glyphs.ellipsis, " ", first), width, glyphs), *others]


def running_text(seq: SequenceFrame, glyphs: Glyphs) -> Text:
    """The prompt, what was generated, and the newest of it, each in its own style."""
    line = Text().append(visible(seq.prompt, glyphs), DIM)
    if len(seq.tokens) > seq.num_prompt_tokens:
        line.append(glyphs.newest, ink_of(seq.label) + BOLD)
    line.append(visible(seq.text.removesuffix(seq.new_text), glyphs))
    newest = visible(seq.new_text, glyphs)
    line.append(" " * (len(newest) - len(newest.lstrip())))
    return line.append(newest.lstrip(), ink_of(seq.label) + NEWEST)


def words(
    seq: SequenceFrame,
    logical: int,
    block: int,
    frame: Frame,
    glyphs: Glyphs,
    counted: bool = False,
    stored: bool = False,
) -> Text:
    """The slots of a block in one line: words that were written in this step are turned inside out.

    Words whose K and V are not there yet are dim; of what is `stored`, they are no part. The empty slots are drawn, or,
    where there would be too many, `counted`.
    """
    begin = block * frame.block_size
    wanted = any(want.label == seq.label for want in frame.ahead.wants)
    plain = style_of(seq.label)
    text = Text(style=plain)
    tokens = seq.block_tokens(logical, frame.block_size)
    for slot in range(frame.block_size):
        if slot:
            text.append(glyphs.divider, plain + DIM)
        if counted and slot == len(tokens):
            return text.append(f"{frame.block_size - slot} empty", plain + DIM)
        is_pending = begin + slot in frame.pending_slots
        if wanted and begin + slot in frame.wanted_slots:
            text.append(glyphs.wanted, style_of(seq.label, now=True) + BOLD)
        elif slot < len(tokens) and not (stored and is_pending):
            now = begin + slot in frame.written_slots
            text.append(visible(tokens[slot], glyphs), plain + DIM if is_pending else style_of(seq.label, now=now))
        else:
            text.append(glyphs.slot, plain + DIM)
    return text


def folded_line(seqs: Sequence[SequenceFrame], width: int, glyphs: Glyphs) -> Text:
    """Several finished requests in one line: how each ended, because that is where they differ."""
    num_shown = min(len(seqs), max(1, width // (INDENT + 8)))
    line = Text()
    for seq in seqs[-num_shown:]:
        room = width // num_shown - INDENT - 1
        text = clip_left(running_text(seq, glyphs), room, glyphs)
        line.append(chip(seq.label)).append(" ").append(text).append(" " * (room - text.cell_len + 1))
    line.truncate(width)
    return line


def _finished_lines(seq: SequenceFrame, width: int, height: int, glyphs: Glyphs) -> list[Text]:
    text = running_text(seq, glyphs)
    status = Text(f"finished ({seq.finish_reason})", DIM)
    room = width - INDENT - status.cell_len - 2
    if height - bool(seq.last_blocks) < 2:  # one line for the text: its end, which was generated
        first, rest = clip_left(text, room, glyphs), Text()
    else:
        first, rest = _split(text, room)
    lines = [_labelled(seq, first, status, width)]
    if rest:
        lines.append(_indent(clip_left(rest, width - INDENT, glyphs)))
    if seq.last_blocks:
        lines.append(_indent(Text(f"gave back {_numbers(seq.last_blocks)}", DIM)))
    return lines[:height]


def _text_line(seq: SequenceFrame, width: int, glyphs: Glyphs) -> Text:
    status = Text(f"{len(seq.tokens)}/{seq.max_num_tokens} tokens", DIM)
    text = clip_left(running_text(seq, glyphs), width - INDENT - status.cell_len - 2, glyphs)
    return _labelled(seq, text, status, width)


def _why_no_blocks(seq: SequenceFrame, frame: Frame) -> list[str]:
    if seq.status == "running":
        return ["waits for the prompt, which its first sample computes for all samples"]
    if seq.swap_blocks:
        return [f"swapped out: its K and V are in {count(len(seq.swap_blocks), 'block')} of the swap pool, safe"]
    wanted = count(blocks_needed(len(seq.tokens), frame.block_size), "block")
    if seq.last_blocks:
        lost = f"preempted, gave back {_numbers(seq.last_blocks)}"
        return [lost, f"waits to be recomputed: that takes {wanted}, {len(frame.free_queue)} are free"]
    return [f"waits for its turn: it needs {wanted}, {len(frame.free_queue)} are free"]


def _numbers(blocks: tuple[int, ...]) -> str:
    return " ".join(map(str, held(blocks)))


def _rows(seq: SequenceFrame, frame: Frame, width: int, glyphs: Glyphs, roomy: bool = False) -> list[Text]:
    """All the blocks of a request, in rows of at most `width`: those of each KV cache group, one after the other."""
    names = map(group_name, frame.windows) if len(frame.windows) > 1 else [""]
    tables = zip(names, seq.tables)
    return [row for name, table in tables for row in _rows_of(name, table, seq, frame, width, glyphs, roomy)]


def _rows_of(
    name: str, table: tuple[int, ...], seq: SequenceFrame, frame: Frame, width: int, glyphs: Glyphs, roomy: bool
) -> list[Text]:
    """The blocks of one table, in rows of at most `width`. A block that is longer goes on in the next row."""
    boxes = [
        Box(i, block, words(seq, i, block, frame, glyphs), _mark(block, frame, glyphs), seq.label)
        for i, block in enumerate(table)
        if held([block])
    ]
    draw: Callable[[Box, Glyphs], list[Text]] = _large_box if roomy else _small_box
    if any(draw(box, glyphs)[0].cell_len > width for box in boxes):
        counted = [words(seq, box.logical, box.physical, frame, glyphs, counted=True) for box in boxes]
        boxes = [box._replace(words=line) for box, line in zip(boxes, counted)]
    if any(draw(box, glyphs)[0].cell_len > width for box in boxes):
        draw = _small_box
    behind = len(table) - len(boxes)
    notes = [f"{name}:"] * bool(name) + [f"({count(behind, 'block')} behind the window)"] * bool(behind)
    note = Text(" ".join(notes), DIM)
    gap = Text(" " * note.cell_len)  # beside large boxes, which take three lines
    rows = [[gap, note, gap] if draw is _large_box else [note]] if notes else []
    for box in boxes:
        drawn = draw(box, glyphs)
        if rows and rows[-1][0].cell_len + 1 + drawn[0].cell_len <= width:
            rows[-1] = beside(rows[-1], drawn)
        else:
            rows.append(drawn)
    return [part for row in rows for line in row for part in _folded(line, width, glyphs)]


def _folded(line: Text, width: int, glyphs: Glyphs) -> list[Text]:
    """A line that is too long, in several: between two slots, if there is an end of one."""
    parts = []
    while line.cell_len > width:
        end = len(chop_cells(line.plain, width)[0])
        end = line.plain.rfind(glyphs.divider, 1, end) + 1 or end
        parts.append(line[:end])
        line = line[end:]
    return [*parts, line]


def _mark(block: int, frame: Frame, glyphs: Glyphs) -> str:
    if block == frame.attended_block:
        return glyphs.reading
    return "*" if block in written_now(frame) else ""


def written_now(frame: Frame) -> set[int]:
    """The blocks that this step has written so far."""
    return {slot // frame.block_size for slot in frame.written_slots}


def _small_box(box: Box, glyphs: Glyphs) -> list[Text]:
    style = style_of(box.label)
    number = Text(f"{glyphs.arrow}{box.physical}{box.mark}", BOLD)
    return [Text.assemble(("[", style), box.words, ("]", style), number)]


def _large_box(box: Box, glyphs: Glyphs) -> list[Text]:
    """Three lines: logical number, words, physical number."""
    head = Text(f" logical {box.logical} ", DIM)
    foot = Text(f" {glyphs.arrow} block {box.physical}{box.mark} ", BOLD)
    inner = max(box.words.cell_len, head.cell_len + 1, foot.cell_len + 1)
    return boxed(head, box.words, foot, inner, ink_of(box.label), glyphs)


def boxed(head: Text, content: Text, foot: Text, inner: int, ink: Style, glyphs: Glyphs) -> list[Text]:
    """`content` in a frame, padded to `inner` cells, with a title in its upper and its lower edge."""
    top_left, top_right, bottom_left, bottom_right = list(glyphs.corners)
    content = content.copy()
    content.truncate(inner, pad=True)
    upper, lower = glyphs.line * (inner - head.cell_len), glyphs.line * (inner - foot.cell_len - 1)
    return [
        Text.assemble((top_left, ink), head, (upper + top_right, ink)),
        Text.assemble((glyphs.divider, ink), content, (glyphs.divider, ink)),
        Text.assemble((bottom_left + lower, ink), foot, (glyphs.line + bottom_right, ink)),
    ]


def beside(left: list[Text], right: list[Text]) -> list[Text]:
    return [Text.assemble(a, " ", b) for a, b in zip(left, right, strict=True)]


def _labelled(seq: SequenceFrame, left: Text, right: Text, width: int) -> Text:
    return spread(Text.assemble(chip(seq.label), " ", left), right, width)


def _indent(text: Text) -> Text:
    return Text.assemble(" " * INDENT, text)


def _split(text: Text, width: int) -> tuple[Text, Text]:
    """`text` up to `width` cells, and the rest: between two words, if there is a space not far from the end."""
    if text.cell_len <= width:
        return text, Text()
    end = len(text)
    while end and text[:end].cell_len > width:
        end -= 1
    space = text.plain.rfind(" ", max(1, end - 12), end + 1)
    return (text[:end], text[end:]) if space < 0 else (text[:space], text[space + 1 :])
