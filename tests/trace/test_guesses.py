"""A step with drafts: what is guessed, how much of it was right, and what is given back, in sentences and in slots."""

import io

import pytest
from engine.guessing import Knowing, speculate
from rich.console import Console

from minipage import LLM, SamplingParams
from minipage.trace import record
from minipage.trace.drawing.glyphs import UNICODE
from minipage.trace.drawing.html import as_tree
from minipage.trace.drawing.terminal import draw

PROMPT = [9, 8, 7, 6, 5]


def watch(wrong, block_size=4, num_tokens=3, max_tokens=9, prompts=(PROMPT,)):
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    plain = LLM(num_blocks=32).generate(list(prompts), params)
    llm = LLM(block_size=block_size, num_blocks=32)
    known = [[*output.prompt_token_ids, *output.outputs[0].token_ids] for output in plain]
    speculate(llm, Knowing(known, wrong), num_tokens)
    with record(llm) as trace:
        llm.generate(list(prompts), params)
    return trace


def of_step(trace, step, phase):
    return next(frame for frame in trace if frame.step == step and frame.phase == phase)


def test_two_of_three_guesses_are_right_and_one_slot_goes_back():
    trace = watch(lambda place: place == 8)  # the prompt has 5 tokens, its first step adds one: 6 and 7 are right
    guessed, computed, done = (of_step(trace, 2, phase) for phase in ("schedule", "sample", "update"))
    [event] = guessed.phase_events
    assert event.startswith("A guesses 3 tokens ahead, ") and event.endswith(": block 2 is taken.")
    [chunk], [seq] = guessed.chunks, guessed.sequences
    assert (chunk.start, chunk.num_tokens, len(seq.drafts)) == (5, 4, 3)
    assert seq.num_computed_tokens == 9 and guessed.blocks[2].tokens == (f"{seq.drafts[2]}?",)
    assert set(chunk.slots) == guessed.pending_slots == computed.written_slots and len(chunk.slots) == 4
    [sampled] = computed.phase_events
    assert sampled.startswith('Sampled: A "') and len(computed.chosen) == 3
    assert (
        "A: 2 of its 3 guesses were right; 1 slot is given back, and block 2 goes back to the free queue."
        in done.phase_events
    )
    [seq] = done.sequences
    assert seq.drafts == () and len(seq.blocks) == 2 and (len(seq.token_ids), seq.num_computed_tokens) == (9, 8)
    assert 2 in done.free_queue


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda place: False, "A: all of its 3 guesses were right."),
        (lambda place: place == 7, "A: 1 of its 3 guesses was right; 2 slots are given back."),
        (lambda place: True, "A: none of its 3 guesses was right; 3 slots are given back."),
    ],
)
def test_how_many_were_right(wrong, told):
    done = of_step(watch(wrong, block_size=16), 2, "update")
    assert done.phase_events[0] == told


def test_a_single_guess():
    trace = watch(lambda place: True, block_size=16, num_tokens=1)
    assert of_step(trace, 2, "schedule").phase_events[0].endswith(": its slot is in the last block.")
    assert of_step(trace, 2, "update").phase_events[0] == "A: its guess was wrong; 1 slot is given back."


def test_many_who_guess_share_a_sentence():
    trace = watch(lambda place: False, prompts=(PROMPT, [*PROMPT, 4], [3, *PROMPT]))
    told = [event for frame in trace for event in frame.phase_events if " guess " in event]
    assert told and told[0].startswith("A, B and C guess 9 tokens ahead: ")


def test_a_text_that_ends_says_what_was_right_and_that_its_blocks_go():
    last = list(watch(lambda place: False))[-1]
    right = next(event for event in last.phase_events if "right" in event)
    assert right.endswith("right.") and any("A is finished (length)" in event for event in last.phase_events)


def test_pictures_show_guesses_with_a_question_mark():
    frame = of_step(watch(lambda place: place == 8), 2, "schedule")
    [seq] = frame.sequences
    console = Console(width=100, file=io.StringIO())
    console.print(draw(frame, 100, None, UNICODE))
    assert f"{frame.blocks[2].tokens[0]}│·│·│·" in console.file.getvalue()
    tree = as_tree(frame)
    assert tree["sequences"]["A"]["drafts"] == seq.drafts and len(seq.drafts) == 3
    assert "drafts" not in as_tree(of_step(watch(lambda place: True), 1, "update"))["sequences"]["A"]
