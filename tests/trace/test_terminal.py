"""The terminal shows what the frames say, at every size, with and without colour."""

import re
from dataclasses import replace
from itertools import groupby

import pytest
from rich.cells import cell_len
from screens import SIZES, screen, section
from stories import frames_of, slow_but

from minipage import LLM, SamplingParams
from minipage.memory import BlockCopy
from minipage.trace import record
from minipage.trace.drawing.glyphs import ASCII, UNICODE, glyphs_for, visible
from minipage.trace.playing.demo import SMALL, Demo, make_engine
from minipage.trace.playing.scenarios import SCENARIOS
from minipage.trace.recording.frames import BlockFrame, is_stop, label_of
from minipage.trace.recording.wording import is_routine


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_step_fits(demo_frames, width, height, glyphs):
    for frame in demo_frames[:: 1 if (width, height) == (80, 24) else 6]:
        lines = screen(frame, width, height, glyphs)
        assert len(lines) == height
        assert max(map(cell_len, lines)) <= width
        if glyphs is ASCII:
            "\n".join(lines).encode("ascii")


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 48)])
def test_each_block_table_is_on_the_screen(demo_frames, width, height):
    """All of it, in order, below the letter whose it is; so are the words."""
    for frame in demo_frames:
        lines = section(screen(frame, width, height), "requests")
        text = re.split(r"(?m)^ (?=[A-Z]  )", "\n".join(lines))[1:]
        shown = {part[0]: part for part in text}
        assert list(shown) == sorted(seq.label for seq in (*frame.sequences, *frame.finished_before))
        for seq in frame.sequences:
            numbers = re.findall(r"→(?: block )?(\d+)", shown[seq.label])
            assert tuple(map(int, numbers)) == seq.blocks
            squeezed = re.sub(r"[^\w]", "", shown[seq.label])
            for token in seq.tokens[: seq.num_computed_tokens if seq.blocks else 0]:
                assert re.sub(r"[^\w]", "", token) in squeezed


def test_the_pool_shows_owner_and_fill(demo_frames):
    for frame in demo_frames:
        numbers, owners, queue, *_ = section(screen(frame), "memory")
        for match in re.finditer(r"\d+", numbers):
            block = frame.blocks[int(match[0])]
            cell = (owners + " " * 80)[4 * int(match[0]) :][:3].rstrip()
            if block.ref_count == 0:
                assert cell == "··"
            else:
                assert cell[0] == block.holders[0]
                assert cell[1] == "▂▄▆█"[block.num_filled - 1]
                assert cell[2:] == "*" * (int(match[0]) in frame.written_blocks)
        assert queue == f"free queue, next first: {' '.join(map(str, frame.free_queue)) or 'empty'}"


def test_the_large_pool_shows_the_words(demo_frames):
    """Six boxes of 26 columns in a row, each with its number, its words and the logical block that they are."""
    for frame in demo_frames[::4]:
        lines = section(screen(frame, 160, 48), "memory")
        homes = {block: (seq, i) for seq in frame.sequences for i, block in enumerate(seq.blocks)}
        for block in range(len(frame.blocks)):
            row, column = 3 * (block // 6), 26 * (block % 6)
            head, words, foot = (line.ljust(160)[column : column + 25] for line in lines[row : row + 3])
            assert f" block {block} " in head
            if block in homes:
                seq, logical = homes[block]
                tokens = [visible(token, UNICODE) for token in seq.block_tokens(logical, frame.block_size)]
                assert words.startswith("│" + "│".join(tokens)[:23])
                assert f" logical {logical} " in foot and seq.label in foot
            else:
                assert "free" in foot


def test_a_free_block_that_can_be_found_again_differs_from_an_empty_one():
    """In the large pool as in the small one, and its words are still there to be read."""
    frames = [frame for frame in frames_of("prefix") if is_stop(frame) and frame.step >= 10]
    for frame in frames:
        lines = screen(frame, 160, 48)
        cells = section(lines, "memory")
        known = [block for block in frame.blocks if block.cached and not block.ref_count]
        empty = [block for block in frame.blocks if not block.cached and not block.ref_count]
        feet = " ".join(cells)
        assert feet.count(" cc free ") == len(known)
        assert feet.count(" free ─") == len(known) + len(empty)
        assert all("│".join(visible(word, UNICODE) for word in block.tokens)[:20] in feet for block in known)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (160, 48), (60, 18)])
def test_a_block_longer_than_a_line_shows_its_last_words_and_where_it_lies(width, height):
    """Its empty slots are counted, and the rest goes on in the next line; what is left out has an ellipsis."""
    scenario = SCENARIOS["prefix"]
    for frame in filter(is_stop, Demo(make_engine(scenario, {"block_size": 64}), scenario).frames()):
        text = re.split(r"(?m)^ (?=[A-Z]  )", "\n".join(section(screen(frame, width, height), "requests")))[1:]
        shown = {part[0]: part for part in text}
        for seq in frame.sequences if frame.phase == "update" else ():
            for block in seq.blocks:
                assert re.search(rf"\d+ empty[]│](?s:.*)→(?: block )?{block}\b", shown[seq.label]), shown[seq.label]
            words = seq.tokens[: seq.num_computed_tokens] if seq.blocks else ()
            assert all(visible(word, UNICODE) in shown[seq.label] for word in words[-3:])
            first = visible(words[0], UNICODE) + "│" if words else ""
            assert first in shown[seq.label] or "… " in shown[seq.label]


def test_who_has_one_line_for_the_blocks_shows_that_there_are_more(one_long):
    lines = section(screen(one_long, 40, 16), "requests")
    rows = [line for line in lines if "→" in line]
    assert rows and all("… " in row for row in rows if "→20*" in row)


@pytest.mark.parametrize("name", ["prefix", "copy-on-write"])
def test_of_a_finished_text_the_end_is_shown(name):
    """What was generated; what has no room is the beginning, and there is an ellipsis in its place."""
    for frame in frames_of(name):
        text = re.split(r"(?m)^ (?=[A-Z]  )", "\n".join(section(screen(frame), "requests")))[1:]
        shown = {part[0]: " ".join(part.split()) for part in text}
        for seq in frame.finished_before:
            squeezed = re.sub(r"finished \(\w+\)| ", "", shown[seq.label])
            assert visible(seq.text, UNICODE)[-12:].replace(" ", "") in squeezed, (frame.step, shown[seq.label])


def test_nobody_reserves_for_a_longest_case_where_nobody_runs(demo_frames):
    shown = [line for frame in demo_frames for line in screen(frame, 160, 48) if line.startswith("contiguous")]
    assert any(line.rstrip().endswith(" 0 blocks reserved") for line in shown)
    assert any("reserved, for the longest case" in line for line in shown)
    assert not any(" 0 blocks reserved," in line for line in shown)


@pytest.fixture(scope="module")
def one_long():
    """A step with one request of twenty blocks between two of one."""
    llm = LLM(block_size=2, num_blocks=24)
    with record(llm) as trace:
        for length in (1, 39, 2):
            llm.add_request(list(range(300, 300 + length)), SamplingParams(max_tokens=2))
        llm.step()
    return trace.steps[0]


SCREENS = [(80, 24), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((100, 30), (120, 40)))]


TOLD = slow_but([name for name in SCENARIOS if name != "fragmentation"], "copy-on-write", "swap")


@pytest.mark.parametrize(("width", "height"), SCREENS)
@pytest.mark.parametrize("name", TOLD)
def test_what_was_computed_is_told_in_whole_sentences(name, width, height):
    """Of every story, at every phase. What is left out for want of room is routine, and it is counted."""
    for frame in frames_of(name):
        lines = screen(frame, width, height)
        rule = next(line for line in lines if "what happened" in line)
        told = " ".join(line.strip() for line in section(lines, "what happened"))
        assert frame.story in told
        events = frame.told_events
        left_out = [event for event in events if event not in told]
        assert ("more" in rule) == bool(left_out) and (not left_out or f"and {len(left_out)} more" in rule)
        assert all(is_routine(event) for event in left_out), (frame.step, left_out)
        assert not any(event[:20] in told for event in left_out), "a part of a sentence"


@pytest.mark.parametrize(("width", "height"), SCREENS)
@pytest.mark.parametrize("name", TOLD)
def test_every_sign_that_is_on_the_screen_is_explained(name, width, height):
    for frame in frames_of(name):
        if frame.attention:
            continue
        lines = screen(frame, width, height)
        legend = next(line for line in lines if line.startswith("── memory"))
        assert "fill" in legend and legend.endswith("──") and len(legend) == width
        cells = section(lines, "memory")
        assert ("cc" in " ".join(cells)) == ("cc " in legend)
        assert any(block.ref_count > 1 for block in frame.blocks) == ("2 share" in legend)


@pytest.mark.parametrize("width", range(40, 100, 3))
def test_a_legend_gets_shorter_and_so_does_its_title_before_it_goes(width):
    frame = next(frame for frame in frames_of("prefix") if any(b.cached and not b.ref_count for b in frame.blocks))
    legend = next(line for line in screen(frame, width) if line.startswith("── memory"))
    assert len(legend) <= width and "cc" in legend


def test_running_beams_have_the_room_and_those_that_died_show_where_they_differ():
    for frame in frames_of("beam"):
        lines = section(screen(frame), "requests")
        for seq in frame.sequences:
            if seq.status == "running" and seq.num_new_tokens:
                place = next(i for i, line in enumerate(lines) if line.startswith(f" {seq.label}  "))
                assert lines[place].endswith(f"{len(seq.tokens)}/{seq.max_num_tokens} tokens"), frame.step
                assert lines[place + 1].endswith((f"→{seq.blocks[-1]}", f"→{seq.blocks[-1]}*"))
        text = "\n".join(lines)
        for seq in frame.finished_before if frame.running else ():
            if (frame.step == 3 or frame.phase != "update") and f" {seq.label}  " not in text:
                continue  # there is so much to tell that the dead are only named, among those who are finished
            assert visible(seq.text, UNICODE)[-5:].strip() in text.split(f" {seq.label}  ")[1].split("  ")[0]


def test_a_long_request_gets_the_room_that_others_spare(one_long):
    lines = section(screen(one_long, 80, 26), "requests")
    assert tuple(map(int, re.findall(r"→(\d+)", "\n".join(lines)))) == tuple(range(22))


@pytest.mark.parametrize(("width", "height"), [(60, 18), (40, 16)])
def test_without_room_the_last_blocks_are_shown(one_long, width, height):
    lines = section(screen(one_long, width, height), "requests")
    first, second, third = re.split(r"(?m)^ (?=[A-C]  )", "\n".join(lines))[1:]
    assert "→0" in first and "→20*" in second and "→1*" not in second and "→21*" in third


def test_without_room_whole_events_are_left_out(demo_frames):
    frame = max(demo_frames, key=lambda frame: len(frame.events))
    lines = screen(replace(frame, story=""), 60, 20)
    told = " ".join(line.removeprefix("• ").strip() for line in section(lines, "what happened")).strip()
    assert told and any(told == event for event in frame.events)
    rule = next(line for line in lines if "what happened" in line)
    assert rule.endswith(f"… and {len(frame.events) - 1} more ──")


def test_bars_compare_paging_with_reservations(demo_frames):
    for frame in demo_frames:
        _, _, _, paged, contiguous = section(screen(frame), "memory")
        assert f"{frame.num_used_blocks} of {len(frame.blocks)} blocks" in paged
        assert f" {frame.num_wasted_slots} empty slot" in paged
        assert f"{frame.num_contiguous_blocks} blocks reserved" in contiguous
        assert ("more than there are" in contiguous) == (frame.num_contiguous_blocks > len(frame.blocks))
        for label in frame.running:
            assert label in paged and label in contiguous
        # The longer reservation is the longer bar, on one scale
        taken = [len(re.sub(r"[░ ]", "", line[11:38])) for line in (paged, contiguous)]
        if frame.num_contiguous_blocks > frame.num_used_blocks + 1:
            assert taken[0] < taken[1]


@pytest.mark.parametrize("name", sorted({*SCENARIOS} - {"fragmentation", "kernel"}))
def test_step_by_step_nothing_is_left_untold(name):
    """What is done in a phase at which nobody stops is told at the next stop."""
    for _, frames in groupby(filter(is_stop, frames_of(name)), key=lambda frame: frame.step):
        stops = list(frames)
        assert {*stops[-1].events} == {event for frame in stops for event in frame.told_events}


def test_the_events_are_on_the_screen(demo_frames):
    for frame in demo_frames:
        text = " ".join(line.lstrip("• ") for line in section(screen(frame), "what happened"))
        for event in frame.told_events:
            assert event in text


def test_the_demo_shows_what_it_is_for(demo_frames):
    """Chunked prefill, a preemption and its recomputation, reuse of blocks, and too little memory for reservations."""
    events = " ".join(event for frame in demo_frames for event in frame.events)
    for words in ("of its", "needs a block", "the pool is dry", "is back", "is finished"):
        assert words in events
    assert any(frame.num_contiguous_blocks > len(frame.blocks) for frame in demo_frames)
    assert 15 <= len(demo_frames) <= 40
    last = demo_frames[-1]
    assert len({block for seq in last.finished_before for block in seq.last_blocks}) <= SMALL["num_blocks"]
    assert not last.running and not last.waiting


def test_a_shared_block_shows_its_count(demo_frames):
    frame = demo_frames[5]
    number = frame.sequences[0].blocks[0]
    shared = replace(frame.blocks[0], ref_count=2, num_filled=frame.block_size, holders=("A", "B"))
    blocks = tuple(shared if i == number else block for i, block in enumerate(frame.blocks))
    frame = replace(frame, blocks=blocks)
    assert "A█2" in section(screen(frame), "memory")[1]
    assert all(len(screen(frame, *size)) == size[1] for size in SIZES)


def test_no_color(demo_frames, monkeypatch):
    """NO_COLOR takes the colours away, and leaves what tells new from old."""
    colour = re.compile(r"\x1b\[[0-9;]*\b[345]8;")
    options = {"color_system": "truecolor", "force_terminal": True}
    assert colour.search("\n".join(screen(demo_frames[5], **options)))
    monkeypatch.setenv("NO_COLOR", "1")
    text = "\n".join(screen(demo_frames[5], **options))
    assert not colour.search(text) and "\x1b[7m" in text


def test_owners_differ_without_colour(demo_frames):
    """The picture without any style still says whose every block is."""
    frame = next(frame for frame in demo_frames if len(frame.running) == 3)
    cells = section(screen(frame), "memory")[1]
    assert {cell[0] for cell in cells.split()} >= {"A", "B", "C"}


def test_numbers_have_the_right_noun():
    llm = LLM(block_size=1, num_blocks=1, max_num_batched_tokens=1)
    with record(llm) as trace:
        llm.generate([[7]], SamplingParams(max_tokens=1))
    text = "\n".join("\n".join(screen(frame)) for frame in trace) + repr(trace)
    assert "1 of at most 1 token computed" in text and "1 of 1 block, 0 empty slots" in text
    assert "memory: 1 block of 1 token " in text
    assert not re.search(r"\b1 (slots|blocks|tokens|steps|frames|requests)\b", text)


def test_glyphs_for():
    assert glyphs_for("utf-8") is UNICODE
    for encoding in ("ascii", "latin-1", "cp1252", "cp437", "no such encoding"):
        assert glyphs_for(encoding) is ASCII


def test_what_cannot_be_seen_becomes_visible():
    assert visible("a\n\tb\x1b[31m\x00\u200b", UNICODE) == "a⏎⇥b\\x1b[31m\\x00\\u200b"
    assert visible("naïve\n🙂", ASCII) == "na\\xefve\\n\\U0001f642"


def test_strange_tokens_keep_their_place(demo_frames):
    frame = demo_frames[5]
    strange = ["\n", "\x1b[2J", "你好", "🙂", "\ufffd", "\u0301", "[bold]", "a" * 200]
    seqs = [
        replace(
            seq,
            tokens=tuple(strange[i % len(strange)] for i in range(len(seq.tokens))),
            prompt="".join(strange[:3]),
            text="".join(strange),
            new_text="".join(strange[6:]),
        )
        for seq in frame.sequences
    ]
    frame = replace(frame, sequences=tuple(seqs))
    for width, height in SIZES:
        for glyphs in (UNICODE, ASCII):
            lines = screen(frame, width, height, glyphs)
            assert len(lines) == height
            assert max(map(cell_len, lines)) <= width
            assert "\x1b" not in "".join(lines)


@pytest.fixture(scope="module")
def crowd():
    """A step with 80 requests and 9,000 blocks."""
    llm = LLM(block_size=2, num_blocks=9000, max_num_batched_tokens=400)
    with record(llm) as trace:
        for _ in range(80):
            llm.add_request(list(range(40)), SamplingParams(max_tokens=40))
        for _ in range(4):
            llm.step()
    return trace[-1]


@pytest.mark.parametrize(("width", "height"), [SIZES[0], pytest.param(*SIZES[4], marks=pytest.mark.slow)])
def test_many_requests_and_a_large_pool_fit(crowd, width, height):
    lines = screen(crowd, width, height)
    assert len(lines) == height and max(map(cell_len, lines)) <= width
    assert any("more requests" in line for line in lines)
    assert [seq.label for seq in crowd.all_sequences] == [label_of(i) for i in range(80)]
    memory = section(lines, "memory")
    more = next(i for i, line in enumerate(memory) if "more blocks" in line)
    letters = "".join(memory[:more])
    assert more > 0 and len(letters) == width * more
    assert letters.startswith("".join(block.holders[0][-1] for block in crowd.blocks[: min(80, len(letters))]))


def test_too_small_a_terminal_says_so(demo_frames):
    for width, height in [(39, 24), (80, 15), (10, 3), (1, 1)]:
        lines = screen(demo_frames[0], width, height)
        assert len(lines) <= height and max(map(cell_len, lines)) <= width
    assert "needs 40 columns and 16 lines" in " ".join(screen(demo_frames[0], 39, 10))


def test_samples_share_the_prompts_blocks_and_copy_the_one_they_write_into():
    llm = LLM(block_size=4, num_blocks=8)
    with record(llm) as trace:
        llm.add_request(list(range(6)), SamplingParams(n=2, max_tokens=6, seed=1, ignore_eos=True))
        llm.step()
        llm.step()
    frame = trace.steps[-1]
    words = frame.sequences[0].tokens[:4]
    assert frame.blocks[0] == BlockFrame(ref_count=2, num_filled=4, holders=("A", "B"), cached=False, tokens=words)
    assert frame.copies == (BlockCopy(1, 2),)
    assert frame.num_stored_tokens == 4 + 3 + 3
    assert "A writes into block 1, which is shared: it is copied to block 2 first." in frame.events
    assert "A█2" in section(screen(frame), "memory")[1]


def test_beams_that_branch_and_die_are_told_of():
    llm = LLM(block_size=4, num_blocks=40)
    with record(llm) as trace:
        llm.generate("To be, or", SamplingParams(beam_width=3, max_tokens=8))
    told = [event for frame in trace.steps for event in frame.events]
    assert any("branches off and shares block" in event for event in told)
    assert any("is finished (beaten by other beams)" in event for event in told)
    assert any("finished (the search is over)" in event for event in told)
    for frame in trace.steps:
        assert frame.num_used_blocks == len({block for seq in frame.sequences for block in seq.blocks})
        assert max(map(len, screen(frame))) <= 80


def test_swapping_is_told_of_and_its_blocks_are_not_drawn_as_if_they_were_in_the_pool():
    llm = LLM(block_size=4, num_blocks=9, preemption="swap", swap_space="2MiB")
    with record(llm) as trace:
        llm.generate(["To be, or", "Speak, speak"], SamplingParams(max_tokens=24, ignore_eos=True))
    swapped = [frame for frame in trace.steps if frame.swapped]
    assert swapped and all(seq.blocks == () for frame in swapped for seq in frame.sequences if seq.status == "swapped")
    assert "swapped out" in "".join(screen(swapped[0]))
    told = [event for frame in trace.steps for event in frame.events]
    assert any("saved, and free again; it will come back" in event for event in told)
    assert any("back from swap" in event for event in told)


@pytest.mark.parametrize(("width", "height"), [(100, 36), (100, 30), (80, 24)])
def test_blocks_behind_a_window_have_room_beside_boxes_of_any_size(width, height):
    """Large boxes take three lines, and what is said of those behind one."""
    scenario = SCENARIOS["window"]
    frames = list(filter(is_stop, Demo(make_engine(scenario, {}), scenario).frames(12)))
    shown = [line for frame in frames for line in screen(frame, width, height, UNICODE)]
    assert any("behind the window" in line for line in shown)
