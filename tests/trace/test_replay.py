"""A trace keeps differences. What is replayed from them equals the engine, moment by moment, also from a file."""

import json

import pytest
import tokenizers

from minipage import LLM, SamplingParams
from minipage.errors import TraceError
from minipage.model.tokenizer import Tokenizer
from minipage.trace import Trace, record
from minipage.trace.drawing.exports import picture
from minipage.trace.recording.frames import PHASES
from minipage.trace.recording.vocabulary import token_bytes


def moment(llm):
    """The engine's own account of itself."""
    scheduler, pool = llm.scheduler, llm.block_pool
    groups = [*scheduler.running, *scheduler.waiting, *scheduler.swapped]
    seqs = {seq.seq_id: seq for group in groups for seq in group.sequences}
    here = {name for name, seq in seqs.items() if seq.block_table.pool is pool}
    cache = scheduler.prefix_cache
    return {
        "tables": {name: tuple(seq.block_table) if name in here else () for name, seq in seqs.items()},
        "swap tables": {name: () if name in here else tuple(seq.block_table) for name, seq in seqs.items()},
        "tokens": {name: tuple(seq.token_ids) for name, seq in seqs.items()},
        "computed": {name: seq.num_computed_tokens for name, seq in seqs.items()},
        "queues": [[s.seq_id for g in q for s in g.sequences] for q in (scheduler.waiting, scheduler.running)],
        "free": tuple(pool.free_queue),
        "counts": [pool.ref_count(block) for block in range(pool.num_blocks)],
        "cached": [cache is not None and block in cache for block in range(pool.num_blocks)],
    }


def moment_in(frame):
    """The same account, read out of a frame."""
    seqs = {seq.seq_id: seq for seq in frame.sequences if seq.status != "finished"}
    names = {seq.label: seq.seq_id for seq in frame.sequences}
    return {
        "tables": {name: seq.blocks for name, seq in seqs.items()},
        "swap tables": {name: seq.swap_blocks for name, seq in seqs.items()},
        "tokens": {name: seq.token_ids for name, seq in seqs.items()},
        "computed": {name: seq.num_computed_tokens for name, seq in seqs.items()},
        "queues": [[names[label] for label in queue] for queue in (frame.waiting, frame.running)],
        "free": frame.free_queue,
        "counts": [block.ref_count for block in frame.blocks],
        "cached": [block.cached for block in frame.blocks],
    }


REQUESTS = [
    ("To be, or not to be, that is the question", {"n": 3, "max_tokens": 14, "seed": 1}),
    ("KING RICHARD III:\nMy kingdom", {"beam_width": 3, "max_tokens": 9}),
    ("To be, or not to be, that is", {"max_tokens": 12, "seed": 2}),
    ("To be, or not to be, that is the question", {"n": 2, "max_tokens": 10, "seed": 3}),
]


def recorded(llm, watch=lambda llm, trace: None):
    """A run with samples, beams, an abort and a reset, with a look after every step."""
    with record(llm, "everything") as trace:
        for i, (prompt, params) in enumerate(REQUESTS):
            llm.add_request(prompt, SamplingParams(ignore_eos=True, **params), f"r{i}")
            for _ in range(4):
                llm.step()
                watch(llm, trace)
            if i == 2:
                llm.abort("r2")
                llm.reset_prefix_cache()
        while llm.has_unfinished_requests():
            seen = len(trace)
            llm.step()
            if len(trace) > seen:
                watch(llm, trace)
    return trace


def engine(**options):
    small = {"block_size": 4, "num_blocks": 40, "max_num_batched_tokens": 16, "swap_space": "1MiB"}
    return LLM(**small | options)


@pytest.fixture(scope="module")
def trace():
    return recorded(engine(enable_prefix_caching=True))


@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
@pytest.mark.parametrize("preemption", ["recompute", "swap", "auto"])
@pytest.mark.parametrize("num_blocks", [34, 80])
def test_every_frame_is_what_the_engine_was(caching, preemption, num_blocks):
    moments = []
    llm = engine(num_blocks=num_blocks, preemption=preemption, enable_prefix_caching=caching)
    trace = recorded(llm, lambda llm, trace: moments.append((len(trace) - 1, moment(llm))))
    assert len(moments) > 20
    for index, expected in moments:
        assert moment_in(trace[index]) == expected


@pytest.mark.parametrize("eviction", ["tails-first", "lfu", "scan-resistant"])
def test_the_free_queue_has_the_order_in_which_blocks_are_evicted(eviction, tmp_path):
    orders = []
    llm = engine(num_blocks=34, eviction=eviction, enable_prefix_caching=True)
    trace = recorded(llm, lambda llm, trace: orders.append((len(trace) - 1, llm.block_pool.free_queue)))
    trace.save(tmp_path / "run.jsonl")
    loaded = Trace.load(tmp_path / "run.jsonl")
    for index, expected in orders:
        assert trace[index].free_queue == loaded[index].free_queue == expected


def test_of_equal_beginnings_of_blocks_the_newest_is_cached():
    moments = []
    llm = engine(block_size=8, enable_prefix_caching=True, prefix_match_unit=2)
    trace = recorded(llm, lambda llm, trace: moments.append((len(trace) - 1, moment(llm))))
    for index, expected in moments:
        assert moment_in(trace[index]) == expected


def test_what_the_prefix_cache_is_told_to_forget_is_not_cached_in_any_frame():
    moments, llm = [], engine(num_blocks=34, enable_prefix_caching=True)
    with record(llm) as trace:
        for allowed in None, [5]:  # and the other request has no token left: what it computed is forgotten
            bad = allowed and [llm.tokenizer.decode(allowed)]
            params = SamplingParams(n=2, seed=1, max_tokens=9, allowed_token_ids=allowed, bad_words=bad)
            llm.add_request(REQUESTS[0][0] if allowed else "To be, or", params)
            while llm.has_unfinished_requests():
                outputs = llm.step()
                moments.append((len(trace) - 1, moment(llm)))
    assert outputs[0].error
    for index, expected in moments:
        assert moment_in(trace[index])["cached"] == expected["cached"]


def test_a_text_that_ends_in_a_step_that_fails_has_no_blocks(monkeypatch):
    llm = engine()
    free, failures = llm.block_pool.free, [KeyboardInterrupt]

    def free_once(block):
        free(block)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(llm.block_pool, "free", free_once)
    with record(llm) as trace:
        llm.add_request(list(range(14)), SamplingParams(max_tokens=1))
        with pytest.raises(KeyboardInterrupt):
            llm.step()
        llm.step()
    assert [seq.blocks for seq in trace[-1].all_sequences] == [()]
    for frame in trace:
        assert picture(frame)


def test_who_is_aborted_while_swapped_out_is_told_of_once(tmp_path):
    llm = engine(num_blocks=9, preemption="swap")
    with record(llm) as trace:
        for name in "one", "two":
            llm.add_request(list(range(14)), SamplingParams(max_tokens=20, ignore_eos=True), name)
        while not llm.scheduler.swapped:
            llm.step()
        llm.abort("two")
        llm.step()
    trace.save(tmp_path / "run.jsonl")
    frames = list(Trace.load(tmp_path / "run.jsonl"))
    assert frames == list(trace)
    assert [seq.status for seq in frames[-1].all_sequences] == ["running", "finished"]


def test_phases_come_in_order_and_tell_what_they_do(trace):
    assert {frame.phase for frame in trace} == set(PHASES) - {"attend", "failed"}
    for before, after in zip(trace, trace[1:]):
        same_step = before.step == after.step
        assert (
            PHASES.index(before.phase) < PHASES.index(after.phase)
            if same_step
            else after.phase in ("before", "schedule")
        )
        if after.phase in ("copy", "forward", "sample"):  # nothing is handed out or given back here
            assert (after.blocks, after.free_queue, after.sequences) == (
                before.blocks, before.free_queue, before.sequences)  # fmt: skip
            assert after.phase_events
    assert all(frame.copies or frame.swap_in or frame.swap_out for frame in trace if frame.phase == "copy")


def test_what_is_chosen_is_what_the_texts_get(trace):
    for before, after in zip(trace, trace[1:]):
        if before.phase == "sample":
            got = [seq.tokens[-1] for seq in after.sequences if seq.num_new_tokens and seq.tokens]
            assert set(got) <= {token for _, token in before.chosen}


def test_words_of_a_block_outlive_it_in_the_cache(trace):
    cached = [(frame, block) for frame in trace for block in frame.blocks if block.cached and not block.ref_count]
    assert cached
    for frame, block in cached:
        assert len(block.tokens) == block.num_filled == frame.block_size and block.holders == ()


def test_any_order_of_looking_shows_the_same(trace):
    forth = list(trace)
    again = Trace(trace.header, trace.vocabulary)
    again.changes = trace.changes
    assert [again[i] for i in reversed(range(len(trace)))] == forth[::-1]
    assert again[-1] == forth[-1] and again[3:6] == forth[3:6]
    with pytest.raises(IndexError):
        again[len(trace)]


def test_a_file_brings_everything_back(trace, tmp_path):
    trace.stories[2] = "A fork in the road — 道"
    trace.save(tmp_path / "run.jsonl")
    loaded = Trace.load(tmp_path / "run.jsonl")
    assert list(loaded) == list(trace) and loaded.title == "everything"
    assert loaded.step_ends == trace.step_ends and loaded.steps == trace.steps


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: ["hello", *lines[1:]], "line 1"),
        (lambda lines: ["{}", *lines[1:]], "not a trace"),
        (lambda lines: [lines[0].replace('"minipage_trace":4', '"minipage_trace":99'), *lines[1:]], "newer minipage"),
        (lambda lines: [*lines[:5], lines[5][:20], *lines[6:]], "line 6"),
        (lambda lines: [*lines[:2], *lines[6:]], "damaged"),
        (lambda lines: [], "line 1"),
    ],
    ids=["no JSON", "another file", "newer", "cut off", "lines lost", "empty"],
)
def test_a_damaged_file_is_refused_in_a_sentence(trace, tmp_path, damage, message):
    path = tmp_path / "run.jsonl"
    trace.save(path)
    path.write_text("\n".join(damage(path.read_text().split("\n"))))
    with pytest.raises(TraceError, match=message):
        Trace.load(path)


def test_characters_of_several_tokens_come_out_whole():
    llm = engine()
    with record(llm) as trace:
        llm.generate("Thé 道 🎭", SamplingParams(max_tokens=2))
    assert trace[-1].all_sequences[0].prompt == "Thé 道 🎭"
    for text in ("道", " king"):
        assert b"".join(token_bytes(llm.tokenizer, token) for token in llm.tokenizer.encode(text)) == text.encode()


def test_a_byte_that_a_tokenizer_spells_out_is_that_byte():
    """As Llama's do with what they have no token for."""
    words = {word: i for i, word in enumerate(["a", *(f"<0x{byte:02X}>" for byte in range(256))])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
    backend.decoder = tokenizers.decoders.ByteFallback()
    ids = [words[f"<0x{byte:02X}>"] for byte in "é🙂".encode()]
    assert b"".join(token_bytes(Tokenizer(backend), token) for token in [0, *ids]) == "aé🙂".encode()


def test_lines_hold_only_what_changed(trace, tmp_path):
    trace.save(tmp_path / "run.jsonl")
    header, *lines = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert header["minipage_trace"] == 4
    forwards = [line for line in lines if line["phase"] == "forward"]
    assert forwards and all(set(line) == {"step", "phase"} for line in forwards)


def test_a_trace_shows_itself_in_a_notebook(trace):
    shown = trace._repr_html_()
    assert "<iframe" in shown and 'sandbox="allow-scripts"' in shown and "everything" in shown
