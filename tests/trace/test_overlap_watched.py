"""Steps that overlap are plain ones while somebody watches."""

import pytest
from engine.checkpoints import save_gpt2

from minipage import LLM, SamplingParams
from minipage.trace import record


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
