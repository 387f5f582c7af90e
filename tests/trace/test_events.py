"""What happened, in sentences."""

from itertools import pairwise

import pytest

from minipage import LLM, SamplingParams
from minipage.trace import record
from minipage.trace.recording import events
from minipage.trace.recording.frames import label_of


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


def test_a_prefix_is_where_it_is_said_to_be_even_if_that_is_in_two_memories():
    """Others evict the end of the first text, then all of it but a block, then all; each time it comes back."""
    llm = LLM(block_size=4, num_blocks=8, enable_prefix_caching=True, kv_offloading_size=0.01)
    with record(llm) as trace:
        for length in (19, 28, 32):
            run_story(llm, {0: [("x", list(range(300, 317)), 1)]})
            run_story(llm, {0: [("y", list(range(400 + length, 400 + 2 * length)), 1)]})
        run_story(llm, {0: [("x", list(range(300, 317)), 1)]})
        told = [event.partition(" in ")[2] for frame in trace.steps for event in frame.events if "begins with" in event]
    assert told == ["blocks 0, 1 and 2, and in the tier below.", "block 0, and in the tier below.", "the tier below."]


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
            "B needs room, but the pool is dry: B, last in line, is preempted; "
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
    start = story.index("A, B and C need a block each: blocks 4, 5 and 6 are taken from the free queue.")
    assert story[start + 1 : start + 4] == [
        "A, B and C need a block each, and none is free: C, last in line, has to give way.",
        "A needs room, but the pool is dry: C, last in line, is preempted; " + again.format("2 blocks are"),
        "A needs a block: block 6 is taken from the free queue.",
    ]


def test_where_one_is_not_enough_several_have_to_give_way():
    llm = LLM(block_size=1, num_blocks=4)
    with record(llm) as trace:
        run_story(llm, {0: [("x", [5, 6], 2), ("y", [7], 2), ("z", [8], 2)]})
    story = [event for frame in trace.steps for event in frame.events]
    assert "A, B and C need a block each, and none is free: C and B, last in line, have to give way." in story


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
