"""The scenario `fragmentation`: the engine and real allocators serve the same requests, and the frames say how."""

import pytest
from screens import screen
from stories import played, stops_of

from minipage import LLM, SamplingParams
from minipage.simulate.baselines import slot_usage
from minipage.trace import Trace, record
from minipage.trace.drawing.glyphs import letter_of
from minipage.trace.drawing.html import as_tree
from minipage.trace.drawing.lane_lines import lanes_of
from minipage.trace.playing.scenarios import SCENARIOS
from minipage.trace.playing.story_texts import LONGEST, NUM_REQUESTS, SCALE, SHORTEST
from minipage.trace.recording.comparison import RULES, Comparison, num_stored_at_last
from minipage.trace.recording.frames import label_of

SCENARIO = SCENARIOS["fragmentation"]


@pytest.fixture(scope="module")
def demo():
    return played("fragmentation")[0]


@pytest.fixture(scope="module")
def frames():
    return stops_of("fragmentation")


def beside(llm, requests, watch=lambda comparison, frame: None):
    """Run requests, {step: [(prompt, max_tokens)]}, on an engine and beside it."""
    comparison = Comparison(llm)
    with record(llm) as trace:
        step = 0
        while requests or llm.has_unfinished_requests():
            for prompt, max_tokens in requests.pop(step, ()):
                llm.add_request(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1))
            seen = len(trace)
            with comparison.around_step(trace):
                llm.step()
            if len(trace) > seen:
                watch(comparison, trace[-1])
            step += 1
    return trace


REQUESTS = {0: [([5] * 9, 12), ([6] * 30, 3)], 2: [([7] * 3, 30), ([8] * 3, 1)], 5: [([9] * 40, 20), ([10] * 17, 9)]}


def copied(requests):
    return {step: list(its) for step, its in requests.items()}


def test_frames_equal_the_allocators():
    """Pieces, queues and shares in every frame are those of the tables and allocators at that moment."""
    looked = []

    def watch(comparison, frame):
        for shown, memory in zip(frame.contiguous, comparison.memories.values(), strict=True):
            jobs, label = memory.running, memory.labels.get
            tables = {label(job): (job.table.start, job.table.num_reserved, job.table.num_tokens) for job in jobs}
            assert {p.label: (p.start, p.num_reserved, p.num_stored) for p in shown.pieces} == tables
            assert shown.waiting == tuple(label(job) for job in memory.waiting)
            assert shown.usage == slot_usage(shown.num_slots, [(job.table, num_stored_at_last(job)) for job in jobs])
            memory.allocator.check_integrity([job.table.start for job in jobs])
            looked.append(bool(shown.waiting))

    llm = LLM(block_size=4, num_blocks=40, max_model_len=64)
    trace = beside(llm, copied(REQUESTS), watch)
    assert any(looked) and not all(looked)
    assert len(trace[-1].contiguous) == len(RULES)
    assert len(trace[-1].contiguous[1].finished) > len(trace[-1].contiguous[0].finished), "some still wait for room"


def test_with_room_for_all_every_memory_keeps_step_with_the_engine():
    """Who runs and who is done is the same, and so are the tokens stored: nothing but memory tells them apart."""

    def watch(_, frame):
        stored = {seq.label: seq.num_computed_tokens for seq in frame.sequences if seq.status == "running"}
        for memory in frame.contiguous:
            assert {piece.label: piece.num_stored for piece in memory.pieces} == stored
            assert not memory.waiting
            assert set(memory.finished) == {s.label for s in frame.all_sequences if s.status == "finished"}

    beside(LLM(block_size=4, num_blocks=400, max_model_len=64), copied(REQUESTS), watch)


def test_the_requests_are_those_of_the_worked_example(demo):
    lengths = [arrival.num_prompt_tokens + arrival.max_tokens for arrival in SCENARIO.arrivals]
    assert len(lengths) == NUM_REQUESTS == 64
    assert SHORTEST / SCALE - 1 < min(lengths) and max(lengths) <= LONGEST / SCALE
    assert sum(lengths) * SCALE == pytest.approx(33_000, rel=0.15), "log-uniform from 50 to 2,000 has a mean of 529"
    for prompt, arrival in zip(demo.prompts, SCENARIO.arrivals, strict=True):
        assert len(prompt) == arrival.num_prompt_tokens


def test_blocks_hold_more_than_every_way_to_reserve(frames):
    in_use = {lane.name: lane.usage.token_states / lane.num_slots for lane in lanes_of(frames[-1])}
    assert list(in_use) == ["longest case", "power of two", "oracle", "in blocks"]
    assert sorted(in_use.values()) == list(in_use.values())
    assert in_use["longest case"] < 0.2 and in_use["in blocks"] > 0.9
    assert max(len(frame.running) for frame in frames) == NUM_REQUESTS


def test_the_words_are_those_that_the_model_says_alone(demo, frames):
    alone = LLM()
    for i in (0, 4, 40, 63):
        text = alone.generate(demo.prompts[i], demo.params[i])[0].outputs[0].text
        shown = frames[-1].all_sequences[i].text
        assert shown and text.startswith(shown.rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize("own", [True, False], ids=["in blocks", "contiguous"])
def test_every_slot_is_in_one_segment_or_free(frames, own):
    for frame in frames[::5]:
        for memory in [frame] if own else frame.contiguous:
            slots = {"stored": 0, "reserved": 0, "internal": 0}
            end = 0
            for segment in memory.segments:
                assert segment.start >= end and segment.num_slots > 0
                end = segment.start + segment.num_slots
                slots[segment.use] += segment.num_slots
            assert tuple(slots.values()) == memory.usage[:3] and sum(slots.values()) + memory.usage.external == 3920


SIZES = [(80, 24), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((160, 48), (40, 16), (60, 20)))]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_terminal_shows_every_memory(frames, width, height):
    for frame in frames[::5] if (width, height) == (80, 24) else frames[::12]:
        lines = screen(frame, width, height)
        assert len(lines) == height and max(map(len, lines)) <= width
        for lane in lanes_of(frame):
            at = next(i for i, line in enumerate(lines) if line.startswith(lane.name))
            assert f"{lane.num_running:>2} run  {lane.num_waiting:>2} wait" in lines[at]
            if (width, height) == (80, 24):  # a cell for each 24.5 slots, the one in its middle
                bar = lines[at + 1] + lines[at + 2]
                what = {slot: s for s in lane.segments for slot in range(s.start, s.start + s.num_slots)}
                for cell, sign in enumerate(bar):
                    segment = what.get((2 * cell + 1) * lane.num_slots // 320)
                    signs = {"stored": letter_of(segment.label), "reserved": "▒", "internal": "×"} if segment else {}
                    assert sign == (signs[segment.use] if segment else "░")


def test_no_two_requests_look_alike_without_a_word(frames):
    """Behind Z come small letters, and behind those a sign that many share: the picture says both."""
    labels = [label_of(i) for i in range(52)]
    assert len({letter_of(label) for label in labels}) == 52
    for frame in frames[::9]:
        lines = screen(frame)
        names = {len(seq.label) > 1 for seq in frame.all_sequences}
        shared = any(seq.label >= "BA" for seq in frame.all_sequences if len(seq.label) > 1)
        words = "A words (a: AA, +: BA)  " if shared else "A words (a: AA)  " if True in names else "A words  "
        assert words in lines[1], lines[1]
        assert "▒ later" in lines[1] and "× never" in lines[1]


def test_texts_without_room_are_counted(frames):
    for frame in frames[::9]:
        lines = screen(frame)
        first = next(i for i, line in enumerate(lines) if line.startswith("in blocks")) + 3
        last = next(i for i, line in enumerate(lines) if line.startswith("── what happened"))
        if last > first and not lines[first].startswith("── requests"):
            assert lines[first] == f"… {len(frame.all_sequences)} requests: no room for texts"


def test_a_file_brings_them_back(demo, frames, tmp_path):
    demo.trace.save(tmp_path / "run.jsonl")
    again = Trace.load(tmp_path / "run.jsonl")
    assert [again[i] for i in again.stops] == frames


def test_the_page_gets_what_it_draws(frames):
    tree = as_tree(frames[-1])
    assert [memory["name"] for memory in tree["contiguous"]] == list(RULES)
    for memory, shown in zip(frames[-1].contiguous, tree["contiguous"], strict=True):
        assert shown["waiting"] == memory.waiting and set(shown["pieces"]) == {piece.label for piece in memory.pieces}


def test_the_limit_of_running_texts_holds_for_all_memories():
    def watch(_, frame):
        for memory in frame.contiguous:
            assert len(memory.pieces) <= 2 and len(frame.running) <= 2
            running = {seq.label for seq in frame.sequences if seq.status == "running"}
            assert {piece.label for piece in memory.pieces} == running

    beside(LLM(block_size=4, num_blocks=400, max_model_len=64, max_num_seqs=2), copied(REQUESTS), watch)
