"""Draws a frame in a terminal, from 80 columns and 24 lines up to whatever there is.

    header       the step, and how much of its token budget it uses
    queues       who runs, who waits
    requests     each text, and its logical blocks with the words in them, each with an arrow to a physical block
    memory       the physical blocks, by number: whose they are and how full; the free queue
    bars         what is stored, against what a contiguous reservation would take
    events       what happened in this step, in sentences

Everything is derived from the frame. A request is a letter and a colour; what happened in this step is turned inside
out, or has a star.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace

from rich.console import Group
from rich.text import Text

from minipage.trace.boxes import request_lines
from minipage.trace.frames import Frame, occupied
from minipage.trace.glyphs import BOLD, DIM, UNICODE, Glyphs, chip, spread
from minipage.trace.lanes import lane_lines
from minipage.trace.lanes import legend as lane_legend
from minipage.trace.pool import CACHED, bar_lines, free_queue_line, pool_lines
from minipage.trace.walk_lines import legend as walk_legend
from minipage.trace.walk_lines import walk_lines

MIN_WIDTH, MIN_HEIGHT = 40, 16
FIXED_LINES = 9  # header, queues, three rules, free queue, two bars, footer
LINES_PER_REQUEST = 12  # where the height is not limited


def draw(frame: Frame, width: int, height: int | None, glyphs: Glyphs = UNICODE, footer: Text | None = None) -> Group:
    """The whole picture: exactly `height` lines of at most `width` cells; without a height, as long as it takes.

    `footer` is put in the last line.
    """
    if height is None:
        return _group(_lines(frame, width, glyphs, roomy=False))
    if not fits(width, height):
        return too_small(width, height)
    lines = _lines(frame, width, glyphs, roomy=width >= 100 and height >= 36, height=height)
    return _group([*lines, footer or Text()])


def fits(width: int, height: int) -> bool:
    return width >= MIN_WIDTH and height >= MIN_HEIGHT


def what_it_needs(width: int, height: int) -> str:
    return f"The picture needs {MIN_WIDTH} columns and {MIN_HEIGHT} lines, and here are {width} and {height}."


def too_small(width: int, height: int) -> Group:
    text = what_it_needs(width, height)
    return Group(*map(Text, textwrap.wrap(text, max(width, 1))[: max(height, 1)]))


def _lines(frame: Frame, width: int, glyphs: Glyphs, roomy: bool, height: int | None = None) -> list[Text]:
    if frame.contiguous:
        return _comparison(frame, width, glyphs, roomy, height)
    if frame.attention:
        return _inside_attention(frame, width, glyphs, roomy, height)
    small = height is not None and height < 24
    pool = pool_lines(frame, width, _pool_height(height), glyphs, roomy)
    events_room = (2 if small else 6 if roomy else 4) + bool(frame.story and not small)
    events = _events(frame, width, None if height is None else events_room, glyphs)
    room = None if height is None else height - FIXED_LINES - len(pool) - len(events)
    return [
        _header(frame, width, glyphs),
        _queues(frame),
        _rule("requests", f"[words in a logical block]{glyphs.arrow}physical block", width, glyphs),
        *_requests(frame, width, room, glyphs, roomy),
        _rule(
            f"memory: {len(frame.blocks)} blocks of {frame.block_size} tokens", _legend(frame, glyphs), width, glyphs
        ),
        *pool,
        free_queue_line(frame, width, glyphs),
        *bar_lines(frame, width, glyphs),
        _rule("what happened", "", width, glyphs),
        *events,
    ]


def _comparison(frame: Frame, width: int, glyphs: Glyphs, roomy: bool, height: int | None) -> list[Text]:
    """Several memories side by side; the texts get what room there is."""
    news = sorted(frame.events, key=lambda event: "the pool is dry" not in event)  # of so many, these first
    frame = replace(frame, events=tuple(news), num_earlier_events=0)
    events = _events(frame, width, 8 if roomy else 4 if height is None or height < 24 else 5, glyphs)
    num_lanes, lines_per_lane = len(frame.contiguous) + 1, 4 if roomy else 2
    if height is not None:
        lines_per_lane = min(lines_per_lane, (height - 4 - len(events)) // num_lanes - 1)
    size = f"{len(frame.blocks) * frame.block_size:,} slots, dealt out in {num_lanes} ways"
    lanes = lane_lines(frame, width, lines_per_lane, glyphs)
    room = 0 if height is None else height - 4 - len(lanes) - len(events)
    requests = []
    if room > 2:
        rule = _rule("requests", f"[words in a logical block]{glyphs.arrow}physical block", width, glyphs)
        requests = [rule, *_requests(frame, width, room - 1, glyphs, roomy)]
    return [
        _header(frame, width, glyphs),
        _rule(size, lane_legend(glyphs), width, glyphs),
        *lanes,
        *(requests or [Text()] * room),
        _rule("what happened", "", width, glyphs),
        *events,
    ]


def _inside_attention(frame: Frame, width: int, glyphs: Glyphs, roomy: bool, height: int | None) -> list[Text]:
    """One query on its way along its block table."""
    assert frame.attention is not None
    events = _events(frame, width, None if height is None else 6 if roomy else 3, glyphs)
    seq = next(seq for seq in frame.sequences if seq.label == frame.attention.label)
    text = request_lines(seq, frame, width, LINES_PER_REQUEST if height is None else max(3, height // 4), glyphs, roomy)
    room = None if height is None else height - 5 - len(text) - len(events)
    walk = walk_lines(frame, frame.attention, width, room, glyphs)
    return [
        _header(frame, width, glyphs),
        _rule("whose query it is", f"[words in a logical block]{glyphs.arrow}physical block", width, glyphs),
        *text,
        _rule("inside attention", walk_legend(frame.attention), width, glyphs),
        *walk,
        _rule("what happened", "", width, glyphs),
        *events,
    ]


def _pool_height(height: int | None) -> int:
    """The most lines that the blocks may take."""
    if height is None:
        return 12
    return 2 if height < 24 else max(4, height // 4)


def _group(lines: list[Text]) -> Group:
    for line in lines:
        line.no_wrap = True  # what is too long is cut off
    return Group(*lines)


def _header(frame: Frame, width: int, glyphs: Glyphs) -> Text:
    budget, used = frame.max_num_batched_tokens, frame.num_computed_tokens
    cells = min(16, budget)
    filled = -(-used * cells // budget)
    left = Text.assemble(("minipage", BOLD), f" {glyphs.bullet} step ", (str(frame.step), BOLD))
    if frame.phase != "update":  # which goes without saying
        left.append(f" {glyphs.bullet} ").append(frame.phase, BOLD)
    right = Text.assemble(
        f"{used} of at most {budget} tokens computed ",
        (glyphs.stored * filled, BOLD),
        (glyphs.free * (cells - filled), DIM),
    )
    return spread(left, right, width)


def _queues(frame: Frame) -> Text:
    line = Text("running ")
    line.append(_chips(frame.running))
    line.append("   waiting ").append(_chips(frame.waiting))
    if frame.swapped:
        line.append("   swapped out ").append(_chips(frame.swapped))
    if done := [seq.label for seq in frame.all_sequences if seq.status == "finished"]:
        line.append("   finished ").append(_chips(done))
    return line


def _chips(labels: tuple[str, ...] | list[str]) -> Text:
    return Text(" ").join(map(chip, labels)) if labels else Text("nobody", DIM)


def _rule(title: str, legend: str, width: int, glyphs: Glyphs) -> Text:
    """A line with a title at its left end and a word of help at its right."""
    left = Text.assemble((f"{glyphs.line * 2} ", DIM), (title, BOLD), " ")
    right = Text(f" {legend} {glyphs.line * 2}" if legend else "", DIM)
    rest = width - left.cell_len - right.cell_len
    if rest < 1:
        return _rule(title, "", width, glyphs) if legend else left
    return Text.assemble(left, (glyphs.line * rest, DIM), right)


def _legend(frame: Frame, glyphs: Glyphs) -> str:
    first, middle, last = glyphs.fills[1], glyphs.fills[4], glyphs.fills[-1]
    known = (
        f"  {CACHED} free, still known" if any(b.cached and not b.ref_count for _, b in occupied(frame.blocks)) else ""
    )
    return f"{first}{middle}{last} fill  * written now  {glyphs.slot * 2} free{known}"


def _requests(frame: Frame, width: int, room: int | None, glyphs: Glyphs, roomy: bool) -> list[Text]:
    """A share of `room` lines for each request; without enough of them, the unfinished ones first."""
    seqs = frame.all_sequences
    if room is None:
        return [line for seq in seqs for line in request_lines(seq, frame, width, LINES_PER_REQUEST, glyphs)]
    by_interest = [*frame.sequences, *reversed(frame.finished_before)]
    hidden = by_interest[room - 1 :] if len(seqs) > room else []
    shown = [seq for seq in seqs if seq not in hidden]
    wanted = [len(request_lines(seq, frame, width, LINES_PER_REQUEST, glyphs, roomy)) for seq in shown]
    lines: list[Text] = []
    for seq, height in zip(shown, _share(room, wanted), strict=True):
        lines += (request_lines(seq, frame, width, height, glyphs, roomy) + [Text()] * height)[:height]
    if hidden:
        lines[room - 1 :] = [Text(f"{glyphs.ellipsis} and {len(hidden)} more requests", DIM)]
    return (lines + [Text()] * room)[:room]


def _share(room: int, wanted: list[int]) -> list[int]:
    """Equal parts of `room`, as long as they do; then those who want more get what others can spare."""
    heights = [room // max(1, len(wanted))] * len(wanted)
    spare = room - sum(heights)
    for taker, want in enumerate(wanted):
        while heights[taker] < want:
            giver = max(range(len(wanted)), key=lambda i: heights[i] - wanted[i])
            if spare:
                spare -= 1
            elif heights[giver] > wanted[giver]:
                heights[giver] -= 1
            else:
                break
            heights[taker] += 1
    return heights


def _events(frame: Frame, width: int, room: int | None, glyphs: Glyphs) -> list[Text]:
    """The sentences, wrapped; exactly `room` lines if that is given."""
    lines = [Text(part, BOLD) for part in textwrap.wrap(frame.story, width)]
    for event in frame.events if frame.phase in ("update", "failed") else frame.phase_events:
        for i, part in enumerate(textwrap.wrap(event, width - 2)):
            lines.append(Text(f"{glyphs.bullet} {part}" if i == 0 else f"  {part}"))
    if room is None:
        return lines
    if len(lines) > room:
        lines[room - 1 :] = [Text(f"{glyphs.bullet} {glyphs.ellipsis} and more", DIM)]
    return (lines + [Text()] * room)[:room]
