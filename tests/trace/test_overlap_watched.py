"""Steps that overlap are plain ones while somebody watches."""

import json
from itertools import pairwise

import pytest
from engine.checkpoints import save_gpt2

from minipage import LLM, SamplingParams
from minipage.simulate.device import PretendDevice
from minipage.trace import record
from minipage.trace.recording.lanes import watch_lanes


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_gpt2(folder)
    return folder


def test_a_recorder_sees_whole_steps(tiny):
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    llm = LLM(tiny, block_size=4, num_blocks=32, async_scheduling=True, enable_prefix_caching=True)
    llm.add_request([5, 6, 7], params)
    told = [llm.step() for _ in range(3)]
    with record(llm) as trace:
        told += [llm.step() for _ in range(4)]
    assert [step.chunks[0].num_tokens for step in trace.steps] == [1] * 4
    while llm.has_unfinished_requests():
        told.append(llm.step())
    [expected] = LLM(tiny, num_blocks=32).generate([5, 6, 7], params)
    assert told[-1][0].outputs[0].token_ids == expected.outputs[0].token_ids
    counts = [len(outputs[0].outputs[0].token_ids) for outputs in told if outputs]
    assert counts == sorted(counts) and counts[-1] == 12


@pytest.mark.parametrize("overlaps", [False, True])
def test_two_lanes(tiny, tmp_path, overlaps):
    """Of each lane, spans that follow each other; and as many steps of the device as there were."""
    llm = LLM(tiny, block_size=4, num_blocks=32)
    PretendDevice(llm, 0.001, overlaps)
    with watch_lanes(llm) as lanes:
        llm.generate([[5, 6, 7], [5, 6]], SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    for lane in ("host", "device"):
        spans = lanes.of(lane)
        assert all(span.start <= span.stop for span in spans)
        assert all(one.stop <= other.start for one, other in pairwise(spans)), lane
    names = [span.name for span in lanes.of("device")]
    assert names == [f"{'' if overlaps else 'plain '}step {i}" for i in range(1, 7)]
    under_way = [
        span for span in lanes.of("host") for step in lanes.of("device") if step.start < span.start < step.stop
    ]
    assert bool(under_way) == overlaps, "the host does something while the device computes"
    assert 0 <= lanes.idle < 1
    lanes.save(tmp_path / "lanes.json")
    events = json.loads((tmp_path / "lanes.json").read_text())["traceEvents"]
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} == {"host", "device"}
    assert sum(event["ph"] == "X" and event["tid"] == 2 for event in events) == 6
    assert not {"_step"} & vars(llm).keys() or overlaps, "nothing stays behind"


def test_lanes_of_an_engine_on_a_cpu_take_turns(tiny):
    llm = LLM(tiny, block_size=4, num_blocks=32, async_scheduling=True)
    with watch_lanes(llm) as lanes:
        llm.generate([5, 6, 7], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True))
        llm.generate([5, 6, 7], SamplingParams(beam_width=2, max_tokens=3))
    names = [span.name for span in lanes.of("device")]
    assert names[:4] == ["step 1", "step 2", "step 3", "step 4"] and names[4] == "plain step 1"
    every = sorted(lanes.spans, key=lambda span: span.start)
    assert all(one.stop <= other.start for one, other in pairwise(every))
