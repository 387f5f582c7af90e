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
from collections.abc import Iterable
from dataclasses import replace

from rich.console import Group
from rich.text import Text

from minipage.errors import count
from minipage.trace.drawing.glyphs import BOLD, DIM, UNICODE, Glyphs, chip, spread
from minipage.trace.drawing.lane_lines import lane_lines
from minipage.trace.drawing.lane_lines import legend as lane_legend
from minipage.trace.drawing.pool_lines import CACHED, REUSED, bar_lines, free_queue_line, pool_lines
from minipage.trace.drawing.request_lines import folded_line, request_lines
from minipage.trace.drawing.walk_lines import legend as walk_legend
from minipage.trace.drawing.walk_lines import walk_lines
from minipage.trace.recording.frames import Frame, SequenceFrame, occupied
from minipage.trace.recording.wording import is_routine

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
    pool = pool_lines(frame, width, _pool_height(height), glyphs, roomy)
    room = None if height is None else height - FIXED_LINES - len(pool)
    requests, events = _requests_and_events(frame, width, room, glyphs, roomy)
    return [
        _header(frame, width, glyphs),
        _queues(frame),
        _rule("requests", [_words_legend(glyphs)], width, glyphs),
        *requests,
        _first_rule(_legends(frame, glyphs), width, glyphs),
        *pool,
        free_queue_line(frame, width, glyphs),
        *bar_lines(frame, width, glyphs),
        *events,
    ]  # fmt: skip


def _requests_and_events(
    frame: Frame, width: int, room: int | None, glyphs: Glyphs, roomy: bool
) -> tuple[list[Text], list[Text]]:
    """Both in `room` lines together. Events get a few; more, if requests can spare it, or if it matters."""
    if room is None:
        return _requests(frame, width, None, glyphs, roomy), _events(frame, width, None, glyphs)
    small = room < 10
    usual = (2 if small else 6 if roomy else 4) + bool(frame.story and not small)
    going_on = [seq for seq in frame.sequences if seq.status != "finished"]
    num_done = len(frame.all_sequences) - len(going_on)
    wanted = [_wanted(seq, frame, width, glyphs, roomy) for seq in going_on]
    if sum(wanted) + num_done + usual > room:  # not a line more than is told
        usual = min(usual, _num_lines(frame, width))
    spared = min(_num_lines(frame, width), room - sum(wanted) - num_done)  # block tables stay whole
    matters = _num_lines(frame, width, routine=False)
    most = room - sum(map(_least, going_on)) - bool(num_done)
    events_room = max(usual, spared, 0 if small else min(matters, most))
    if events_room > most:  # its last lines may be empty, or routine
        events_room = max(most, min(usual, matters))
    events_room = min(events_room, room)
    requests = _requests(frame, width, room - events_room, glyphs, roomy)
    return requests, _events(frame, width, events_room, glyphs)


def _comparison(frame: Frame, width: int, glyphs: Glyphs, roomy: bool, height: int | None) -> list[Text]:
    """Several memories side by side; the texts get what room there is."""
    news = sorted(frame.events, key=lambda event: "the pool is dry" not in event)  # of many, dry pools first
    frame = replace(frame, events=tuple(news), num_earlier_events=0)
    most = 4 if height is None or height < 24 else 8
    events = _events(frame, width, most if roomy else min(most, max(4, _num_lines(frame, width))), glyphs)
    num_lanes = len(frame.contiguous) + 1
    lines_per_lane = 4 if roomy else 2
    if height is not None:
        lines_per_lane = min(lines_per_lane, (height - 4 - (len(events) - 1)) // num_lanes - 1)
    size = f"{count(len(frame.blocks) * frame.block_size, 'slot')}, dealt out {num_lanes} ways"
    signs = lane_legend(frame, glyphs)
    lanes = lane_lines(frame, width, lines_per_lane, glyphs)
    room = 0 if height is None else height - 4 - len(lanes) - (len(events) - 1)
    requests = [Text()] * room
    if 0 < room <= 2 and frame.all_sequences:
        requests[0] = Text(f"{glyphs.ellipsis} {count(len(frame.all_sequences), 'request')}: no room for texts", DIM)
    elif room > 2:
        rule = _rule("requests", [_words_legend(glyphs)], width, glyphs)
        requests = [rule, *_requests(frame, width, room - 1, glyphs, roomy)]
    return [
        _header(frame, width, glyphs),
        _rule(size, fewer_parts(signs, signs[:0:-1]), width, glyphs),
        *lanes,
        *requests,
        *events,
    ]


def _inside_attention(frame: Frame, width: int, glyphs: Glyphs, roomy: bool, height: int | None) -> list[Text]:
    """One query on its way along its block table."""
    assert frame.attention is not None
    most = 6 if roomy else 3 if height is None or height < 24 else max(3, min(5, _num_lines(frame, width)))
    events = _events(frame, width, None if height is None else most, glyphs)
    seq = next(seq for seq in frame.sequences if seq.label == frame.attention.label)
    text = request_lines(seq, frame, width, LINES_PER_REQUEST if height is None else max(3, height // 4), glyphs, roomy)
    room = None if height is None else height - 5 - len(text) - (len(events) - 1)
    walk = walk_lines(frame, frame.attention, width, room, glyphs)
    return [
        _header(frame, width, glyphs),
        _rule("whose query it is", [_words_legend(glyphs)], width, glyphs),
        *text,
        _rule("inside attention", [walk_legend(frame.attention)], width, glyphs),
        *walk,
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
    done = "planned" if frame.phase in ("schedule", "copy") else "computed"
    right = Text.assemble(
        f"{used} of at most {count(budget, 'token')} {done} ",
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


def _rule(title: str, legends: Iterable[str], width: int, glyphs: Glyphs) -> Text:
    """A line with a title at its left end and a word of help at its right: the first of `legends` that has room."""
    return _first_rule([(title, legend) for legend in [*filter(None, legends), ""]], width, glyphs)


def _first_rule(choices: Iterable[tuple[str, str]], width: int, glyphs: Glyphs) -> Text:
    """The same with the first (title, legend) that has room; of the last, the legend is empty."""
    for title, legend in choices:
        left = Text.assemble((f"{glyphs.line * 2} ", DIM), (title, BOLD), " ")
        right = Text(f" {legend} {glyphs.line * 2}" if legend else "", DIM)
        rest = width - left.cell_len - right.cell_len
        if rest >= 1:
            break
    return Text.assemble(left, (glyphs.line * max(0, rest), DIM), right)


def _words_legend(glyphs: Glyphs) -> str:
    return f"[words in a logical block]{glyphs.arrow}physical block"


def _legends(frame: Frame, glyphs: Glyphs) -> Iterable[tuple[str, str]]:
    """How large the memory is, and what its signs mean, in fewer and fewer words.

    The title is the first to lose some, then the signs that one could guess are left out.
    """
    title = f"memory: {count(len(frame.blocks), 'block')}"
    full_title = f"{title} of {count(frame.block_size, 'token')}"
    first, middle, last = glyphs.fills[1], glyphs.fills[4], glyphs.fills[-1]
    known = any(block.cached and not block.ref_count for _, block in occupied(frame.blocks))
    shared = max((block.ref_count for _, block in occupied(frame.blocks)), default=0) > 1
    fill, free = f"{first}{middle}{last} fill", f"{glyphs.slot * 2} free"
    cached, sharing = f"{CACHED} free, still known", "2 share it"
    rare = [f"{glyphs.wanted} wants to write"] * bool(frame.wanted_slots)
    rare += ["<2 copy of 2"] * bool(frame.phase == "copy" and frame.copies) + [f"{REUSED} reused"] * bool(frame.reused)
    now = ["* written now"] * bool(frame.written_slots)
    yield full_title, "  ".join([fill, *now, free, *[sharing] * shared, *[cached] * known, *rare])
    now, cached, sharing = now and ["* new"], f"{CACHED} still known", "2 shared"
    parts = [fill, *now, free, *[sharing] * shared, *[cached] * known, *rare]
    for legend in fewer_parts(parts, [free]):
        yield full_title, legend
    fill, cached, sharing = f"{middle} fill", f"{CACHED} known", "2 share"
    parts = [fill, *now, *[sharing] * shared, *[cached] * known, *rare]
    yield full_title, "  ".join(parts)
    for legend in fewer_parts(parts, [fill, *now, sharing, *rare]):
        yield title, legend
    yield full_title, ""


def fewer_parts(parts: list[str], expendable: list[str]) -> Iterable[str]:
    """All parts in a line, then without the first of the `expendable` parts, without the first two, ..."""
    for num_left_out in range(len(expendable) + 1):
        yield "  ".join(part for part in parts if part not in expendable[:num_left_out])


def _requests(frame: Frame, width: int, room: int | None, glyphs: Glyphs, roomy: bool) -> list[Text]:
    """All requests in `room` lines. Unfinished ones come first; finished ones share a line, if need be."""
    seqs = frame.all_sequences
    if room is None:
        return [line for seq in seqs for line in request_lines(seq, frame, width, LINES_PER_REQUEST, glyphs)]
    wanted = {seq: _wanted(seq, frame, width, glyphs, roomy) for seq in seqs}
    done = [*frame.finished_before, *(seq for seq in frame.sequences if seq.status == "finished")]
    num_folded = 0
    too_many = sum(map(_least, seqs)) - room
    while num_folded < len(done) and num_folded - bool(num_folded) < too_many:
        num_folded += 1
    folded = [seq for seq in seqs if seq in done[:num_folded]]
    shown = [seq for seq in seqs if seq not in folded]
    lines = [folded_line(folded, width, glyphs)] if folded and room > sum(map(_least, shown)) else []
    room_left = room - len(lines)
    hidden = shown[max(0, room_left - 1) :] if len(shown) > room_left else []
    shown = [seq for seq in shown if seq not in hidden]
    heights = _share(room_left - bool(hidden), [wanted[seq] for seq in shown], [bool(seq.blocks) for seq in shown])
    for seq, height in zip(shown, heights, strict=True):
        lines += (request_lines(seq, frame, width, height, glyphs, roomy) + [Text()] * height)[:height]
    if hidden:
        lines.append(Text(f"{glyphs.ellipsis} and {count(len(hidden), 'more request')}", DIM))
    return (lines + [Text()] * room)[:room]


def _wanted(seq: SequenceFrame, frame: Frame, width: int, glyphs: Glyphs, roomy: bool) -> int:
    """Lines that a request would take."""
    return len(request_lines(seq, frame, width, LINES_PER_REQUEST, glyphs, roomy))


def _least(seq: SequenceFrame) -> int:
    """Lines without which a request cannot be followed: its text, and the end of its block table."""
    return 2 if seq.blocks else 1


def _share(room: int, wanted: list[int], come_first: list[bool]) -> list[int]:
    """A line for each, and then one after the other gets more, until all have what they want or `room` is used up."""
    heights = [1] * len(wanted)
    for now in (True, False):
        takers = [i for i, first in enumerate(come_first) if first is now]
        while sum(heights) < room and (takers := [i for i in takers if heights[i] < wanted[i]]):
            heights[min(takers, key=lambda i: heights[i])] += 1
    return heights


def _wrapped(sentence: str, width: int) -> list[str]:
    return textwrap.wrap(sentence, width - 2)


def _num_lines(frame: Frame, width: int, routine: bool = True) -> int:
    """Lines of the story and of the sentences, with or without routine sentences."""
    told = [event for event in frame.told_events if routine or not is_routine(event)]
    return sum(len(_wrapped(event, width)) for event in told) + len(textwrap.wrap(frame.story, width))


def _events(frame: Frame, width: int, room: int | None, glyphs: Glyphs) -> list[Text]:
    """A rule and the sentences, wrapped; in exactly `room` lines, some are left out as a whole: routine first."""
    lines = [Text(part, BOLD) for part in textwrap.wrap(frame.story, width)]
    told = list(frame.told_events)
    num_told = len(told)
    if room is not None:
        room_left = room - len(lines)
        expendable = [
            *filter(is_routine, reversed(told)),
            *(event for event in reversed(told) if not is_routine(event)),
        ]
        while told and sum(len(_wrapped(event, width)) for event in told) > room_left:
            told.remove(expendable.pop(0))
    for event in told:
        first, *others = _wrapped(event, width)
        lines += [Text(f"{glyphs.bullet} {first}"), *(Text(f"  {part}") for part in others)]
    left_out = [f"{glyphs.ellipsis} and {num_told - len(told)} more"] if len(told) < num_told else []
    return [
        _rule("what happened", left_out, width, glyphs),
        *(lines if room is None else (lines + [Text()] * room)[:room]),
    ]
