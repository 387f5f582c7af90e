"""Recording: frames say what the engine's state was, and recording changes nothing."""

import sys
from importlib import import_module
from itertools import pairwise
from pkgutil import walk_packages

import pytest
from screens import screen, section

import minipage.trace
from minipage import LLM, SamplingParams
from minipage.trace import Frame, record
from minipage.trace.playing.demo import Demo
from minipage.trace.playing.scenarios import DEFAULT, SCENARIOS
from minipage.trace.recording.frames import BlockFrame


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


MORE_POOLS = [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 40, 3), (7, 12, 64), (4, 60, 1000))]


@pytest.mark.parametrize(("block_size", "num_blocks", "budget"), [(4, 14, 8), *MORE_POOLS])
@pytest.mark.parametrize("preemption", [pytest.param("recompute", marks=pytest.mark.slow), "swap"])
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
        ahead = any(step == frame.step and frame.phase == "before" for frame in trace)
        phases = [*["before"] * ahead, "schedule", *["copy"] * moved, "forward", "sample", "update"]
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
    """The engine takes back a step that fails, and a frame shows what is true then."""
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
                assert trace[-1].phase == "failed" and "The step failed." in trace[-1].phase_events[0]
                assert state_in(trace[-1]) == state_of(llm)
                assert not trace[-1].written_blocks and "computed again" in "".join(screen(trace[-1]))
    assert [frame.step for frame in trace.steps] == [1, 2, 4, 5, 6]
    assert trace.steps[2].chunks[0].start == 0, "what was half written was not computed again"
    assert trace.steps[-1].sequences[0].finish_reason == "length"


def test_a_trace_and_all_in_it_say_in_a_line_what_they_are():
    llm = LLM(block_size=4, num_blocks=400, max_num_batched_tokens=1000)
    with record(llm, "A title") as trace:
        llm.generate(["To be, or not to be"] * 40, SamplingParams(max_tokens=4))
    assert repr(trace) == "<Trace 'A title': 4 steps, 16 frames, 400 blocks of 4 tokens>"
    frame = trace[5]
    assert "step 2" in repr(frame) and "of 400 blocks used" in repr(frame)
    for thing in (trace, frame, frame.sequences[0], frame.blocks, frame.blocks[0], frame.chunks[0]):
        assert len(repr(thing)) < 200 and "\n" not in repr(thing)


def test_record_is_the_function_whatever_else_was_imported():
    """A module of that name would take its place in the package as soon as somebody imports it."""
    for module in walk_packages(minipage.trace.__path__, "minipage.trace."):
        import_module(module.name)
    assert minipage.trace.record is record and callable(record)


class Interrupt:
    """Presses Ctrl-C when a line of these files comes for the first time; without a line, notes which come."""

    FILES = tuple(import_module(f"minipage.trace.recording.{name}").__file__ for name in ("recorder", "trace"))

    def __init__(self, place=None):
        self.place, self.seen = place, {}

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(lambda frame, event, arg: self.line if frame.f_code.co_filename in self.FILES else None)

    def __exit__(self, *_):
        sys.settrace(self.before)

    def line(self, frame, event, arg):
        if event == "line":
            place = frame.f_code.co_filename, frame.f_lineno
            self.seen.setdefault(place)
            if place == self.place:
                self.place = None
                raise KeyboardInterrupt
        return self.line


@pytest.mark.parametrize("stride", [48, pytest.param(1, marks=pytest.mark.slow)])
def test_ctrl_c_while_it_is_recorded_or_replayed_loses_nothing(stride):
    """Wherever it comes, the steps after it are told as they are, and no frame is lost."""

    def run(interrupt):
        llm = LLM(block_size=4, num_blocks=24, max_num_seqs=2, enable_prefix_caching=True)
        with record(llm) as trace:
            for i in range(9):
                try:
                    with interrupt:
                        if i % 3 == 0:
                            llm.add_request(f"To be {i}", SamplingParams(n=2, max_tokens=3, ignore_eos=True), str(i))
                        if i == 4:
                            llm.abort("0")
                        llm.step()
                        assert trace[-1].sequences or i > 4
                except KeyboardInterrupt:
                    continue
                assert state_in(trace[-1]) == state_of(llm)
            while llm.has_unfinished_requests():
                llm.step()
            assert state_in(trace[-1]) == state_of(llm)
            assert len(trace[:]) == len(trace)

    run(every := Interrupt())
    places = sorted(every.seen)[::stride]
    assert len(places) > 2
    for place in places:
        run(Interrupt(place))
