"""A model with several KV cache groups: frames hold the block table of each, and every picture shows them all."""

import re
from collections import Counter

import pytest
from engine.checkpoints import SAVE
from screens import screen, section
from test_layout import FAULTS

from minipage import LLM, SamplingParams
from minipage.memory.kv_groups import NULL_BLOCK
from minipage.trace import Trace, record
from minipage.trace.drawing.exports import picture
from minipage.trace.recording.frames import is_stop

PROMPTS = [list(range(3, 24)), [*range(3, 19), 40, 41]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    SAVE["hybrid"](folder)
    return folder


def tables_in(llm):
    """Of each sequence the tables of its groups, as the engine has them."""
    groups = [*llm.scheduler.running, *llm.scheduler.waiting, *llm.scheduler.swapped]
    return {
        seq.seq_id: tuple(tuple(part) for part in seq.block_table.parts)
        for group in groups
        for seq in group.sequences
        if seq.block_table.pool is llm.block_pool
    }


def watched(folder, **options):
    """A run, and the engine's tables after each step."""
    llm = LLM(folder, block_size=4, max_num_batched_tokens=16, swap_space="1MiB", **options)
    seen = []
    with record(llm) as trace:
        for i, prompt in enumerate(PROMPTS):
            params = SamplingParams(n=2 - i, max_tokens=12, seed=i, ignore_eos=True)
            llm.add_request(prompt, params, str(i))
        while llm.has_unfinished_requests():
            llm.step()
            seen.append(tables_in(llm))
    return trace, seen


@pytest.fixture(scope="module")
def trace(folder):
    return watched(folder, num_blocks=60, enable_prefix_caching=True)[0]


@pytest.mark.parametrize("num_blocks", [60, 35])
@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_frames_hold_the_table_of_each_group(folder, num_blocks, preemption):
    trace, seen = watched(folder, num_blocks=num_blocks, preemption=preemption)
    assert len(trace[0].windows) > 1 and 0 in trace[0].windows and max(trace[0].windows) > 0
    for frame, expected in zip(trace.steps, seen, strict=True):
        going_on = [seq for seq in frame.sequences if seq.status not in ("finished", "swapped")]
        shown = {seq.seq_id: seq.tables for seq in going_on if seq.blocks}
        assert shown == {name: tables for name, tables in expected.items() if tables[0]}
    assert any(NULL_BLOCK in table for tables in seen for its in tables.values() for table in its), "no window moved on"
    assert any(frame.preempted for frame in trace.steps) == (num_blocks < 60)


def test_every_block_in_use_has_a_holder_and_words(trace):
    for frame in trace:
        held = Counter(block for seq in frame.sequences for table in seq.tables for block in table if block >= 0)
        assert {number: block.ref_count for number, block in enumerate(frame.blocks) if block.ref_count} == held
        for block in frame.blocks:
            assert len(block.holders) == block.ref_count
        if frame.phase == "update":
            assert all(block.num_filled for block in frame.blocks if block.ref_count)
    assert any(block.ref_count > 1 for frame in trace for block in frame.blocks)


def test_what_is_told_counts_the_blocks_of_all_groups(trace):
    told = " ".join(event for frame in trace for event in frame.events)
    assert "The window of A has moved on: " in told and "needs a block for each group of layers: " in told
    last = trace[-1]
    before = next(frame for frame in reversed(trace[:-1]) if frame.phase == "sample")
    held = {block for seq in before.sequences for table in seq.tables for block in table} - {NULL_BLOCK}
    assert last.finished == ("A", "B", "C")
    assert f"A, B and C are finished (length): their {len(held)} blocks go back" in last.events[-1]


def test_a_file_brings_them_back(trace, tmp_path):
    trace.save(tmp_path / "run.jsonl")
    assert list(Trace.load(tmp_path / "run.jsonl")) == list(trace)


def names_of(frame):
    return [f"last {window} tokens" if window else "all tokens" for window in frame.windows]


@pytest.mark.parametrize(("width", "height"), [(100, 48), (160, 60)])
def test_the_terminal_shows_each_table_below_its_name(trace, width, height):
    for frame in filter(is_stop, trace):
        lines = section(screen(frame, width, height), "requests")
        parts = re.split(r"(?m)^ (?=[A-Z]  )", "\n".join(lines))[1:]
        shown = {part[0]: part for part in parts}
        for seq in frame.sequences:
            if seq.blocks and seq.label in shown and "…" not in shown[seq.label]:
                numbers = [int(n) for n in re.findall(r"→(?: block )?(\d+)", shown[seq.label])]
                assert numbers == [block for table in seq.tables for block in table if block >= 0]
                places = [shown[seq.label].index(f"{name}:") for name in names_of(frame)]
                assert places == sorted(places)
        memory = "".join(section(screen(frame, width, height), "memory"))
        assert frame.ahead.wants or "?" not in memory, "a block that nobody holds"


def test_the_picture_shows_them_too(trace):
    frame = next(frame for frame in trace.steps if frame.running)
    text = re.sub(r"<[^>]+>", "", picture(frame, 120, 60)).replace("&#160;", " ")
    assert all(f"{name}:" in text for name in names_of(frame))


def test_the_page_shows_each_table(trace, opened):
    frames = trace[:]
    with opened(frames, reduced_motion="reduce") as tab:
        for i in range(0, len(frames), 5):
            tab.evaluate(f"show({i})")
            frame = frames[i]
            for seq in frame.sequences:
                if not seq.blocks or seq.status == "finished":
                    continue
                text = tab.locator(f'#texts [data-label="{seq.label}"]')
                assert text.locator(".groups > small").all_inner_texts() == names_of(frame)
                for table, shown in zip(seq.tables, text.locator(".groups > ol").all(), strict=True):
                    leads = [f"→ {block}" if block >= 0 else "behind" for block in table]
                    assert shown.locator(".leads").all_inner_texts() == leads
            assert tab.locator("#pool .cell.used .chip").count() >= frame.num_used_blocks
            keys = tab.evaluate("[...document.querySelectorAll('[data-key]')].map((one) => one.dataset.key)")
            assert len(keys) == len(set(keys)), "two things have one name"
            assert tab.evaluate(FAULTS) == []
