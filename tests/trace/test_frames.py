"""The blocks of a frame: what is kept is what holds something, and all the others are there as well."""

import pytest

from minipage import LLM, SamplingParams
from minipage.trace import record
from minipage.trace.drawing.html import FREE_SHOWN, as_tree
from minipage.trace.recording.frames import FREE, BlockFrame, Blocks

A, B = BlockFrame(1, 2, ("A",), False, ("to", " be")), BlockFrame(0, 1, (), True, ("or",))


@pytest.mark.parametrize("kept", [{}, {3: A}, {5: B, 0: A}])
def test_blocks_are_like_a_tuple_of_all(kept):
    blocks, plain = Blocks(6, kept), tuple(kept.get(i, FREE) for i in range(6))
    assert (tuple(blocks), len(blocks)) == (plain, 6)
    assert [blocks[i] for i in (0, 5, -1, -6)] == [plain[i] for i in (0, 5, -1, -6)]
    assert blocks[1:4] == plain[1:4] and blocks[::-2] == plain[::-2]
    assert (A in blocks, blocks.count(FREE)) == (A in plain, plain.count(FREE))
    for outside in (6, -7):
        with pytest.raises(IndexError):
            blocks[outside]
    assert blocks == Blocks(6, dict(reversed(kept.items()))) and hash(blocks) == hash(Blocks(6, kept))
    assert blocks != Blocks(7, kept) and blocks != Blocks(6, kept | {1: B})


def test_a_frame_of_a_large_pool_keeps_what_is_in_use():
    llm = LLM(block_size=1, num_blocks=120_000)
    with record(llm) as trace:
        llm.generate("To be, or not", SamplingParams(max_tokens=3, ignore_eos=True))
    frame = trace.steps[0]
    assert len(frame.blocks) == 120_000 and len(list(frame.blocks.items())) == frame.num_used_blocks < 10
    tree = as_tree(frame)
    assert len(tree["blocks"]) == frame.num_used_blocks
    assert tree["num_free"] == len(frame.free_queue) > 100_000 and len(tree["free_queue"]) == FREE_SHOWN
