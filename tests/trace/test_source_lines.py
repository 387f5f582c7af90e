"""The code beside the picture: each event names the lines that did it, in the package or in a learner's file."""

import importlib.util

import pytest

from minipage import LLM, SamplingParams
from minipage.memory import BlockTable
from minipage.trace import Trace, record
from minipage.trace.recording.source_lines import lines_naming


def lit(frame):
    """{function: what its lines say, that were at work}"""
    return {code.function: [code.lines[line - code.first].strip() for line, _ in code.lit] for code in frame.code}


@pytest.fixture(scope="module")
def trace():
    llm = LLM(block_size=4, num_blocks=9, preemption="swap", enable_prefix_caching=True)
    with record(llm) as trace:
        llm.generate("To be, or not to be", SamplingParams(max_tokens=4, ignore_eos=True))
        llm.generate("To be, or not to be", SamplingParams(n=2, max_tokens=8, seed=1, ignore_eos=True))
        llm.generate(["To be, or", "Speak, speak"], SamplingParams(max_tokens=24, ignore_eos=True))
    return trace


def first(trace, holds):
    return next(frame for frame in trace if holds(frame))


def test_each_kind_of_event_shows_its_lines(trace):
    took = first(trace, lambda frame: "start" in " ".join(frame.phase_events))
    assert any("allocate_many" in line for line in lit(took)["BlockTable._take_blocks"])
    assert any("_free_queue" in line for line in lit(took)["BlockPool.allocate_many"])
    wants = lit(first(trace, lambda frame: frame.ahead.wants))
    assert any("ref_count" in line for line in wants["BlockTable.shared_tail"])
    copied = lit(first(trace, lambda frame: frame.copies and frame.phase == "copy"))
    assert any("plan.copies" in line for line in copied["ModelRunner.copy"]) and copied["copy_blocks"]
    forward = lit(first(trace, lambda frame: frame.phase == "forward"))
    assert any("write_kv" in line for line in forward["attend_with"])
    assert lit(first(trace, lambda frame: frame.phase == "sample"))["sample"]
    way = lit(first(trace, lambda frame: frame.ahead.gives_way))
    assert any("self.preempt(" in line for line in way["Scheduler._make_room"])
    assert lit(first(trace, lambda frame: frame.ahead.finds))["PrefixCache.find"]
    assert lit(first(trace, lambda frame: frame.ahead.returns))["Scheduler._swap_in"]
    assert lit(first(trace, lambda frame: frame.finished))["BlockTable.free"]
    assert all(frame.code for frame in trace)


@pytest.mark.parametrize(
    ("params", "function", "says"),
    [
        (SamplingParams(max_tokens=2), "sample", "return first_beyond("),
        (SamplingParams(max_tokens=2, temperature=0), "sample", "return likeliest"),
        (SamplingParams(max_tokens=2, beam_width=2), "BeamRequest.choose", "self._advanced.advance("),
    ],
)
def test_tokens_are_chosen_by_the_lines_that_choose_so(params, function, says):
    llm = LLM(block_size=4, num_blocks=9, max_num_batched_tokens=8)
    with record(llm) as trace:
        llm.generate("To be, or not to be, that is", params)  # in two chunks: after the first, nobody is given a token
    none, some = [lit(frame) for frame in trace if frame.phase == "sample"][:2]
    assert none == {} and says in some[function][-1]


def test_a_line_knows_the_blocks_that_it_dealt_with(trace):
    frame = first(trace, lambda frame: "start" in " ".join(frame.phase_events))
    [(_, blocks)] = next(code.lit for code in frame.code if code.function == "BlockTable._take_blocks")
    assert blocks == frame.sequences[0].blocks


def test_they_are_kept_in_the_file(trace, tmp_path):
    trace.save(tmp_path / "run.jsonl")
    assert [frame.code for frame in Trace.load(tmp_path / "run.jsonl")] == [frame.code for frame in trace]


def test_a_trace_from_before_there_was_code_still_opens(trace, tmp_path):
    trace.save(tmp_path / "run.jsonl")
    lines = (tmp_path / "run.jsonl").read_text("utf-8").replace('"minipage_trace":4', '"minipage_trace":2')
    lines = lines.replace('"functions":', '"unknown":').replace('"routine":', '"unheard":').replace('"code":', '"old":')
    (tmp_path / "old.jsonl").write_text(lines, "utf-8")
    assert [frame.code for frame in Trace.load(tmp_path / "old.jsonl")] == [()] * len(trace)


def test_a_part_of_ones_own_shows_ones_own_lines(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from minipage.memory import BlockTable\n\n\nclass MyTable(BlockTable):\n"
        "    def free(self):\n        while self.blocks:\n            self.pool.free(self.blocks.pop(0))  # mine\n"
        "        self.num_tokens = 0\n"
    )
    spec = importlib.util.spec_from_file_location("mine", path)
    mine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mine)
    assert issubclass(mine.MyTable, BlockTable)
    llm = LLM(block_size=4, num_blocks=9, block_table=mine.MyTable)
    with record(llm) as trace:
        llm.generate("To be", SamplingParams(max_tokens=2, ignore_eos=True))
    assert lit(trace[-1])["MyTable.free"] == ["self.pool.free(self.blocks.pop(0))  # mine"]
    assert next(code.file for code in trace[-1].code if code.function == "MyTable.free").endswith("/mine.py")


def test_lines_are_found_by_what_they_name():
    lines = ["def f(x):", "    y = (", "        x.pool", "        .free(1)", "    )", "    return pool"]
    assert lines_naming(lines, 10, ["free"]) == [13]
    assert lines_naming(lines, 10, ["pool"]) == [12, 15]
