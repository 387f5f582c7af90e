"""The trace: frames say what the engine's state was, and the terminal shows what the frames say."""

import io
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from rich.cells import cell_len
from rich.console import Console

from minipage import LLM, SamplingParams
from minipage.memory import BlockCopy
from minipage.trace import Frame, events, record
from minipage.trace.demo import SMALL, Demo
from minipage.trace.frames import BlockFrame, ends_step, label_of
from minipage.trace.glyphs import ASCII, UNICODE, glyphs_for, visible
from minipage.trace.player import HELP, SECONDS_PER_STEP, Player
from minipage.trace.scenarios import DEFAULT, SCENARIOS
from minipage.trace.terminal import draw

SIZES = [(80, 24), (160, 48), (100, 36), (60, 20), (40, 16), (200, 70)]


@pytest.fixture(scope="module")
def llm():
    return LLM(**SMALL)


@pytest.fixture(scope="module")
def demo_frames(llm):
    """Every step of the demo as it comes out of the box."""
    return list(filter(ends_step, Demo(llm, SCENARIOS[DEFAULT]).frames()))


def screen(frame, width=80, height=24, glyphs=UNICODE, **options):
    """The lines that a terminal of this size would show."""
    console = Console(width=width, height=height, file=io.StringIO(), **({"color_system": None} | options))
    console.print(draw(frame, width, height, glyphs))
    return console.file.getvalue().split("\n")[:-1]


def run_story(llm, requests, steps=1000):
    """Run `requests`, {step: [(id, prompt, max_tokens)]}, and abort by {step: "id"}."""
    for step in range(steps):
        for request in requests.pop(step, []):
            if isinstance(request, str):
                llm.abort(request)
            else:
                request_id, prompt, max_tokens = request
                llm.add_request(prompt, SamplingParams(seed=1, max_tokens=max_tokens, ignore_eos=True), request_id)
        if not requests and not llm.has_unfinished_requests():
            return
        llm.step()


# ---- recording


def state_of(llm):
    """The engine's own account of itself, in plain copies."""
    queues = llm.scheduler
    group_of = {seq: group for group in [*queues.running, *queues.waiting, *queues.swapped] for seq in group.sequences}
    seqs, pool = list(group_of), llm.block_pool
    return {
        "waiting": [seq.seq_id for group in queues.waiting for seq in group.sequences],
        "running": [seq.seq_id for group in queues.running for seq in group.sequences],
        "swapped": [seq.seq_id for group in queues.swapped for seq in group.sequences],
        "tables": {seq.seq_id: [] if group_of[seq] in queues.swapped else list(seq.block_table) for seq in seqs},
        "token_ids": {seq.seq_id: list(seq.token_ids) for seq in seqs},
        "computed": {seq.seq_id: seq.block_table.num_tokens for seq in seqs},
        "preemptions": {seq.seq_id: group_of[seq].num_preemptions for seq in seqs},
        "free_queue": list(pool.free_queue),
        "ref_counts": [pool.ref_count(block) for block in range(pool.num_blocks)],
    }


def state_in(frame: Frame):
    """The same account, read out of a frame."""
    ids = {seq.label: seq.seq_id for seq in frame.sequences}
    seqs = [seq for seq in frame.sequences if seq.status != "finished"]
    return {
        "waiting": [ids[label] for label in frame.waiting],
        "running": [ids[label] for label in frame.running],
        "swapped": [ids[label] for label in frame.swapped],
        "tables": {seq.seq_id: list(seq.blocks) for seq in seqs},
        "token_ids": {seq.seq_id: list(seq.token_ids) for seq in seqs},
        "computed": {seq.seq_id: seq.num_computed_tokens for seq in seqs},
        "preemptions": {seq.seq_id: seq.num_preemptions for seq in seqs},
        "free_queue": list(frame.free_queue),
        "ref_counts": [block.ref_count for block in frame.blocks],
    }


@pytest.mark.parametrize(("block_size", "num_blocks", "budget"), [(4, 14, 8), (1, 40, 3), (7, 12, 64), (4, 60, 1000)])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_frames_equal_the_engines_state(block_size, num_blocks, budget, preemption, monkeypatch):
    sizes = {"block_size": block_size, "num_blocks": num_blocks, "swap_space": "2MiB"}
    llm = LLM(**sizes, max_num_batched_tokens=budget, max_num_seqs=3, preemption=preemption)
    scheduled, planned, updated = [], [], []

    copy = llm.copy  # the engine calls it right after it has scheduled

    def look(plan):
        scheduled.append(state_of(llm))
        planned.append([(chunk.seq.seq_id, chunk.start, chunk.num_tokens) for chunk in plan.chunks])
        copy(plan)

    monkeypatch.setattr(llm, "copy", look)
    requests = {
        0: [("a", "First Citizen:", 18)],
        1: [("b", "To be", 20), ("c", "Speak", 9)],
        4: [("d", "O, ", 12), ("e", "But", 3), ("f", "Nay,", 5)],
    }
    with record(llm) as trace:
        for step in range(100):
            for request_id, prompt, max_tokens in requests.pop(step, []):
                llm.add_request(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True), request_id)
            if llm.has_unfinished_requests():
                llm.step()
                updated.append(state_of(llm))
    first, second = [[frame for frame in trace if frame.phase == phase] for phase in ("schedule", "update")]
    assert len(planned) > 15
    for step, plan in enumerate(planned, 1):
        moved = any(step == frame.step and frame.phase == "copy" for frame in trace)
        phases = ["schedule", *["copy"] * moved, "forward", "sample", "update"]
        assert [frame.phase for frame in trace if frame.step == step] == phases and plan
    assert list(map(state_in, first)) == scheduled
    assert list(map(state_in, second)) == updated
    assert trace.steps == second
    assert max(len(frame.waiting) for frame in second) > 2
    for frame, chunks in zip(second, planned, strict=True):
        ids = {seq.label: seq.seq_id for seq in frame.sequences}
        assert [(ids[chunk.label], chunk.start, chunk.num_tokens) for chunk in frame.chunks] == chunks


def test_a_frame_agrees_with_itself(demo_frames):
    for frame in demo_frames:
        used = [number for number, block in enumerate(frame.blocks) if block.ref_count]
        assert sorted(frame.free_queue) == sorted(set(range(len(frame.blocks))) - set(used))
        assert frame.num_used_blocks == len(used)
        assert frame.num_stored_tokens == sum(seq.num_computed_tokens for seq in frame.sequences)
        assert frame.num_wasted_slots == len(used) * frame.block_size - frame.num_stored_tokens
        for seq in frame.sequences:
            assert [frame.blocks[block].holders for block in seq.blocks] == [(seq.label,)] * len(seq.blocks)
            words = [word for i in range(len(seq.blocks)) for word in seq.block_tokens(i, frame.block_size)]
            assert words == list(seq.tokens[: seq.num_computed_tokens])
        for chunk in frame.chunks:
            seq = next(seq for seq in frame.sequences if seq.label == chunk.label)
            blocks = seq.blocks or seq.last_blocks  # it may be finished
            positions = range(chunk.start, chunk.start + chunk.num_tokens)
            slots = [blocks[i // frame.block_size] * frame.block_size + i % frame.block_size for i in positions]
            assert list(chunk.slots) == slots
        assert {slot // frame.block_size for chunk in frame.chunks for slot in chunk.slots} == frame.written_blocks


def test_kv_is_where_the_frame_says(llm):
    """K changes in the slots that the frame calls written, and nowhere else."""
    with record(llm) as trace:
        llm.add_request("Come, come, you", SamplingParams(max_tokens=9))
        while llm.has_unfinished_requests():
            before = llm.kv_cache.k.copy()
            llm.step()
            changed = (llm.kv_cache.k != before).any(axis=(0, 3, 4))  # [num_blocks, block_size]
            slots = {slot for chunk in trace[-1].chunks for slot in chunk.slots}
            assert set(changed.reshape(-1).nonzero()[0].tolist()) == slots


def test_frames_never_change(llm):
    demo = Demo(llm, SCENARIOS[DEFAULT].with_prompts(["To be"] * 4, 12), seed=3)
    with record(llm) as trace:
        seen = [(frame, repr(frame)) for frame in demo.frames()]
    assert all(repr(frame) == before for frame, before in seen)
    assert len({hash(frame) for frame in trace}) == len(seen)  # all that is in them can be hashed
    with pytest.raises(AttributeError):
        seen[0][0].step = 5


def test_demo_leaves_nothing_behind(llm, demo_frames):
    assert llm.block_pool.num_free == llm.block_pool.num_blocks
    assert not llm.has_unfinished_requests()
    assert not {"schedule", "update"} & vars(llm).keys()


def test_recording_ends_with_the_block(llm):
    attributes = dict(vars(llm))
    with pytest.raises(KeyError), record(llm):
        raise KeyError
    assert vars(llm) == attributes
    with record(llm) as outer:
        with record(llm) as inner:
            llm.generate("To be", SamplingParams(max_tokens=2))
        llm.generate("To be", SamplingParams(max_tokens=3))
    assert len(inner.steps) == 2 and len(outer.steps) == 5
    assert vars(llm).keys() == attributes.keys()
    llm.generate("To be", SamplingParams(max_tokens=2))
    assert len(outer.steps) == 5


def test_frames_hold_the_text(llm):
    """Characters that take several tokens come out whole, prompt and generated text apart, the new part marked."""
    params = SamplingParams(seed=2, max_tokens=12, temperature=2.0)
    with record(llm) as trace:
        prompt = "Ça va, naïve 🙂?\n"
        output = llm.generate(prompt, params)[0].outputs[0]
    seqs = [frame.sequences[0] for frame in trace.steps]
    assert all(seq.prompt == prompt for seq in seqs)
    assert seqs[-1].text == output.text and seqs[-1].finish_reason == "length"
    for before, after in pairwise(seqs):
        assert after.text.endswith(after.new_text)
        assert after.num_new_tokens == len(after.token_ids) - len(before.token_ids)
        if "\ufffd" not in before.text:
            assert before.text + after.new_text == after.text
    assert [seq.num_new_tokens for seq in seqs].count(1) == 12


def test_a_model_without_a_tokenizer(llm, monkeypatch):
    monkeypatch.setattr(llm, "tokenizer", None)
    with record(llm) as trace:
        llm.generate([3, 4, 5], SamplingParams(max_tokens=2))
    last = trace.steps[-1].sequences[0]
    assert last.prompt == " 3 4 5" and last.tokens[:3] == (" 3", " 4", " 5") and last.text == "".join(last.tokens[3:])


def test_recording_changes_no_text(llm):
    params = SamplingParams(seed=7, max_tokens=12)
    plain = llm.generate(["To be", "ROMEO:"], params)
    with record(llm):
        recorded = llm.generate(["To be", "ROMEO:"], params)
    assert [output.outputs for output in recorded] == [output.outputs for output in plain]


def test_recording_may_begin_in_the_middle(llm):
    llm.add_request("First Citizen:", SamplingParams(max_tokens=5, ignore_eos=True))
    llm.step()
    with record(llm) as trace:
        llm.add_request("To be", SamplingParams(max_tokens=2, ignore_eos=True))
        while llm.has_unfinished_requests():
            llm.step()
    first = trace[0]
    assert [seq.label for seq in first.sequences] == ["A", "B"]
    assert not any(event.startswith("A arrives") for event in first.events)
    assert any(event.startswith("B arrives") for event in first.events)


def test_aborted_before_anything_was_recorded(llm):
    llm.add_request("First Citizen:", SamplingParams(max_tokens=5), "early")
    llm.step()
    with record(llm) as trace:
        llm.abort("early")
        llm.generate("To be", SamplingParams(max_tokens=2))
    assert trace[0].events[0] == "A is aborted: its 1 block goes back to the free queue."
    assert trace[0].finished_before[0].finish_reason == "abort"


def test_a_block_that_no_sequence_holds(llm):
    block = llm.block_pool.allocate()
    with record(llm) as trace:
        llm.generate("To be", SamplingParams(max_tokens=2))
    llm.block_pool.free(block)
    frame = trace.steps[0]
    assert frame.blocks[block] == BlockFrame(ref_count=1, num_filled=0, holders=(), cached=False, tokens=())
    assert "?" in section(screen(frame), "memory")[1]


def test_a_failed_step_is_survived(llm, monkeypatch):
    """The engine takes back a step that fails; the next frame shows what is true then."""
    forward, failures = llm.forward, iter([False, False, True])

    def sometimes(plan):
        if next(failures, False):
            raise RuntimeError("a cosmic ray")
        return forward(plan)

    monkeypatch.setattr(llm, "forward", sometimes)
    with record(llm) as trace:
        llm.add_request("To be", SamplingParams(max_tokens=5, ignore_eos=True))
        for _ in range(10):
            try:
                llm.step()
            except RuntimeError:
                assert trace[-1].phase == "schedule"
    assert [frame.step for frame in trace.steps] == [1, 2, 4, 5, 6]
    assert trace.steps[2].chunks[0].start == 0, "what was half written was not computed again"
    assert trace.steps[-1].sequences[0].finish_reason == "length"


# ---- events


def test_events_tell_the_story():
    llm = LLM(block_size=4, num_blocks=6, max_num_batched_tokens=8)
    with record(llm) as trace:
        run_story(
            llm,
            {
                0: [("x", list(range(300, 310)), 10)],
                2: [("y", list(range(400, 404)), 12)],
                12: [("z", [7], 8)],
                18: ["y"],
            },
        )
    story = [(frame.step, event) for frame in trace.steps for event in frame.events]
    for expected in (
        (1, "A arrives: a prompt of 10 tokens."),
        (1, "A starts: 8 of its 10 tokens take blocks 0 and 1 from the free queue."),
        (2, "A goes on: 2 more of its 10 tokens; block 2 is taken."),
        (3, "B starts: its 4 tokens take block 3 from the free queue."),
        (4, "B needs a block: block 4 is taken from the free queue."),
        (4, "A: the new token fits in its last block."),
        (7, "A and B: the new tokens fit in their last blocks."),
        (
            8,
            "B needs room, but the pool is dry: B, the latest, is preempted; "
            "its 2 blocks are free again and it will be recomputed.",
        ),
        (11, "A is finished (length): its 5 blocks go back to the free queue."),
        (12, "B is back: 8 of its 9 tokens are computed again, in blocks 3 and 4."),
        (13, "C arrives: a prompt of 1 token."),
        (13, "C starts: its 1 token takes block 2 from the free queue."),
        (19, "B is aborted: its 4 blocks go back to the free queue."),
    ):
        assert expected in story, "\n".join(map(str, story))


def test_every_block_that_moves_is_spoken_of(demo_frames):
    """Nobody gets a block, and nobody loses one, without a sentence that names the request."""
    for before, after in pairwise(demo_frames):
        tables = {seq.label: seq.blocks for seq in before.sequences}
        for seq in after.sequences:
            if len(seq.blocks) != len(tables.get(seq.label, ())):
                assert any(seq.label in event.split(":")[0] or f" {seq.label}, " in event for event in after.events)


def test_who_is_preempted_for_whom():
    """The sentences come in the order of the scheduler's doing: who could still grow, who found the pool dry."""
    llm = LLM(block_size=1, num_blocks=7)
    with record(llm) as trace:
        run_story(llm, {0: [("x", [5, 6], 6), ("y", [7], 4), ("z", [8], 4)]})
    story = [event for frame in trace.steps for event in frame.events]
    again = "its {} free again and it will be recomputed."
    start = story.index("A needs a block: block 4 is taken from the free queue.")
    assert story[start : start + 5] == [
        "A needs a block: block 4 is taken from the free queue.",
        "B needs a block: block 5 is taken from the free queue.",
        "C needs a block: block 6 is taken from the free queue.",
        "A needs room, but the pool is dry: C, the latest, is preempted; " + again.format("2 blocks are"),
        "A needs a block: block 6 is taken from the free queue.",
    ]


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([3], "block 3"),
        ([3, 9], "blocks 3 and 9"),
        ([4, 3, 9], "blocks 4, 3 and 9"),
        (list(range(5, 50)), "blocks 5 to 49"),
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], "blocks 9, 8, 7, 6, 5, 4 and 4 more"),
    ],
)
def test_block_names(blocks, words):
    assert events.block_names(blocks) == words


def test_labels():
    assert [label_of(i) for i in (0, 1, 25, 26, 27, 51, 52, 701, 702)] == [
        "A",
        "B",
        "Z",
        "AA",
        "AB",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]


# ---- the terminal


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("glyphs", [UNICODE, ASCII], ids=["unicode", "ascii"])
def test_every_step_fits(demo_frames, width, height, glyphs):
    for frame in demo_frames:
        lines = screen(frame, width, height, glyphs)
        assert len(lines) == height
        assert max(map(cell_len, lines)) <= width
        if glyphs is ASCII:
            "\n".join(lines).encode("ascii")


def section(lines, title):
    """The lines from one rule to the next."""
    start = next(i for i, line in enumerate(lines) if line.startswith(f"── {title}"))
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("── ")), len(lines))
    return lines[start + 1 : end]


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
    for frame in demo_frames:
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


@pytest.fixture(scope="module")
def one_long():
    """A step with one request of twenty blocks between two of one."""
    llm = LLM(block_size=2, num_blocks=24)
    with record(llm) as trace:
        for length in (1, 39, 2):
            llm.add_request(list(range(300, 300 + length)), SamplingParams(max_tokens=2))
        llm.step()
    return trace.steps[0]


def test_a_long_request_gets_the_room_that_others_spare(one_long):
    lines = section(screen(one_long, 80, 26), "requests")
    assert tuple(map(int, re.findall(r"→(\d+)", "\n".join(lines)))) == tuple(range(22))


@pytest.mark.parametrize(("width", "height"), [(60, 18), (40, 16)])
def test_without_room_the_last_blocks_are_shown(one_long, width, height):
    lines = section(screen(one_long, width, height), "requests")
    first, second, third = re.split(r"(?m)^ (?=[A-C]  )", "\n".join(lines))[1:]
    assert "→0" in first and "→20*" in second and "→1*" not in second and "→21*" in third


def test_without_room_events_are_cut(demo_frames):
    frame = max(demo_frames, key=lambda frame: len(frame.events))
    lines = section(screen(frame, 60, 20), "what happened")
    assert lines[1] == "• … and more"


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


def test_the_events_are_on_the_screen(demo_frames):
    for frame in demo_frames:
        text = " ".join(line.lstrip("• ") for line in section(screen(frame), "what happened"))
        for event in frame.events:
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


@pytest.mark.parametrize(("width", "height"), SIZES)
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
    assert any("is finished (none of its continuations is among the best)" in event for event in told)
    assert any("is finished (the search is over)" in event for event in told)
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
    assert any("saved and free again and it will come back" in event for event in told)
    assert any("back from swap" in event for event in told)


# ---- the player, without a terminal


@pytest.fixture
def player(demo_frames):
    return Player(demo_frames[0], iter(demo_frames[1:]), UNICODE)


def test_back_shows_what_was_shown_before(player, demo_frames):
    for key in "nnnnn":
        player.press(key)
    assert player.frame is demo_frames[5]
    for key in ("b", "left"):
        player.press(key)
    assert player.frame is demo_frames[3]
    player.press("right")
    assert player.frame is demo_frames[4]
    for _ in range(6):
        player.press("left")
    assert player.frame is demo_frames[0]


def test_it_plays_by_itself_and_leaves(player, demo_frames):
    for _ in demo_frames:
        assert player.playing and not player.left
        player.tick()
    assert player.frame is demo_frames[-1] and player.at_end and not player.left
    player.tick()
    assert player.left


def test_once_touched_it_waits_at_the_end(player, demo_frames):
    player.press("+")
    for _ in range(len(demo_frames) + 5):
        player.tick()
    assert player.frame is demo_frames[-1] and not player.left
    player.press("q")
    assert player.left


def test_pause_speed_and_help(player, demo_frames):
    player.press(" ")
    player.tick()
    assert player.frame is demo_frames[0]
    player.press(" ")
    player.tick()
    assert player.frame is demo_frames[1]
    player.press("+")
    assert player.seconds < SECONDS_PER_STEP
    player.press("-")
    assert player.seconds == pytest.approx(SECONDS_PER_STEP)
    player.press("?")
    player.tick()
    assert player.helping and player.frame is demo_frames[1]
    player.press("q")  # any key closes the help, and does nothing else
    assert not player.helping and not player.left


def test_the_help_fits():
    lines = HELP.split("\n")
    assert len(lines) <= 24 and max(map(len, lines)) <= 80 and HELP.isascii()
