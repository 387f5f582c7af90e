"""Questions that ask what the next step does: from a run of the real engine, recorded, with requests drawn by a seed.

The state is told as it was when a step was over; the answer is read off the frames of the step after it. All of it
follows from what is told: first come, first served, a prompt with several samples is computed once, and
nothing is hidden.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from minipage.engine.llm import LLM
from minipage.learn.quiz.paper import Question
from minipage.sampling import SamplingParams
from minipage.trace.recording.frames import Frame, SequenceFrame, label_of
from minipage.trace.recording.recorder import record

PER_RUN = 2  # questions
# The shipped model with next to nothing in it: no question tells or asks what is said, only where it is kept.
TINY = {"n_layer": 1, "n_embd": 4, "n_head": 1}
VOCABULARY = range(1, 500)  # prompts are drawn from these tokens: no end-of-text among them


class Step(NamedTuple):
    """A moment, and what the next step does."""

    before: Frame  # the step before is over
    scheduled: Frame  # blocks have been handed out
    copied: Frame | None  # blocks have been copied, if any were
    after: Frame  # the step is over


def frame_questions(rng: random.Random, count: int) -> list[Question]:
    """This many, of each kind as often as of any other, if the runs have it; at most PER_RUN of one run.

    Steps of one run are apart, because the state after a step would answer the question before it.
    """
    chosen: list[Question] = []
    times = dict.fromkeys(KINDS, 0)
    while len(chosen) < count:
        steps = list(recorded_steps(rng))
        rng.shuffle(steps)
        asked: list[int] = []
        for kind in sorted(KINDS, key=lambda kind: times[kind]):
            for step in steps:
                is_apart = all(abs(step.scheduled.step - other) > 2 for other in asked)
                if len(chosen) < count and len(asked) < PER_RUN and is_apart and (question := kind(step, rng)):
                    asked.append(step.scheduled.step)
                    chosen.append(question)
                    times[kind] += 1
                    break
    return chosen


def recorded_steps(rng: random.Random) -> Iterator[Step]:
    size = rng.choice([2, 4, 4])
    llm = LLM(
        block_size=size, num_blocks=40 // size + rng.randint(0, 3), max_num_batched_tokens=rng.randint(5, 12),
        max_model_len=64, arrays="plain", attention="reference", load_format="dummy", hf_overrides=TINY,
    )  # fmt: skip
    arrivals = sorted(rng.randint(0, 7) for _ in range(rng.randint(3, 5)))
    prompts = [rng.choices(VOCABULARY, k=rng.randint(2, 11)) for _ in arrivals]
    params = [
        SamplingParams(
            max_tokens=rng.randint(3, 9), n=rng.choice([1, 1, 2]), ignore_eos=True, seed=rng.randint(0, 9999)
        )
        for _ in arrivals
    ]
    come = 0
    with record(llm) as trace:
        for step in range(100):
            while come < len(arrivals) and arrivals[come] <= step:
                llm.add_request(prompts[come], params[come], request_id=label_of(come))
                come += 1
            if come == len(arrivals) and not llm.has_unfinished_requests():
                break
            llm.step()
    by_step: dict[int, dict[str, Frame]] = {}
    for frame in trace[:]:
        by_step.setdefault(frame.step, {})[frame.phase] = frame
    for step, frames in by_step.items():
        if "update" in frames and "update" in by_step.get(step - 1, {}):  # nothing is computed while nobody is there
            yield Step(by_step[step - 1]["update"], frames["schedule"], frames.get("copy"), frames["update"])


# ---- how a moment is told


def told(step: Step) -> str:
    """The state, as lines that Markdown leaves alone."""
    frame = step.before
    known = {seq.label: seq for seq in frame.sequences}
    everybody = step.scheduled.sequences

    def row(seq: SequenceFrame) -> str:
        mates = [other.label for other in everybody if other.request_id == seq.request_id and other.label != seq.label]
        together = f"; a sample of the same prompt as {', '.join(mates)}" if mates else ""
        is_stored = seq.blocks and seq.label in known  # a newcomer's blocks are what is asked
        stored = f", {seq.num_computed_tokens} of them stored in blocks {list(seq.blocks)}" if is_stored else ""
        return f"{seq.label}: {len(seq.tokens)} tokens{stored}; it may grow to {seq.max_num_tokens}{together}"

    lines = [
        f"blocks of {frame.block_size} tokens, {len(frame.blocks)} in the pool, "
        f"at most {frame.max_num_batched_tokens} tokens a step",
        *(f"running  {row(known[label])}" for label in frame.running if label in known),
        *(f"waiting  {row(known[label])}" for label in frame.waiting if label in known),
        *(f"arrives  {row(seq)}" for seq in everybody if seq.label not in known),
        "free queue, next first: " + (" ".join(map(str, frame.free_queue)) or "empty"),
    ]
    return "\n".join("    " + line for line in lines)


def ask(step: Step, what: str, answer: str) -> Question:
    happened = " ".join(step.scheduled.events)
    text = f"The engine after step {step.before.step}:\n\n{told(step)}\n\n{what}"
    return Question(text, answer, f"A recorded run, step {step.scheduled.step}: {happened}", is_frame=True)


# ---- what is asked


def whose_table(step: Step, rng: random.Random) -> Question | None:
    before = {seq.label: seq.blocks for seq in step.before.sequences}
    grown = [seq for seq in step.scheduled.sequences if seq.blocks and seq.blocks != before.get(seq.label, ())]
    if not grown:
        return None
    seq = rng.choice(grown)
    return ask(
        step,
        f"What is the block table of {seq.label} in the next step, once blocks are handed out?",
        str(list(seq.blocks)),
    )


def which_slots(step: Step, rng: random.Random) -> Question | None:
    chunks = [chunk for chunk in step.scheduled.chunks if chunk.num_tokens <= 4]
    if not chunks:
        return None
    chunk = rng.choice(chunks)
    slots = " ".join(map(str, chunk.slots))
    return ask(
        step, f"Into which slots does the next step write the K and V that it computes for {chunk.label}?", slots
    )


def how_many_tokens(step: Step, rng: random.Random) -> Question | None:
    if len(step.scheduled.chunks) < 2:
        return None
    answer = ", ".join(f"{chunk.label} {chunk.num_tokens}" for chunk in step.scheduled.chunks)
    return ask(step, "For whom does the next step compute how many tokens?", answer)


def free_queue(step: Step, rng: random.Random) -> Question | None:
    if step.scheduled.free_queue == step.before.free_queue:
        return None
    answer = " ".join(map(str, step.scheduled.free_queue)) or "empty"
    return ask(step, "What is the free queue in the next step, once blocks are handed out, next block first?", answer)


def who_gives_way(step: Step, rng: random.Random) -> Question | None:
    if not step.scheduled.preempted:
        return None
    return ask(step, "Who loses its blocks in the next step?", ", ".join(step.scheduled.preempted))


def what_is_copied(step: Step, rng: random.Random) -> Question | None:
    if step.copied is None or not step.copied.copies:
        return None
    answer = ", ".join(f"block {copy.source} to block {copy.destination}" for copy in step.copied.copies)
    return ask(step, "Which block does the next step copy, and to where?", answer)


def who_is_done(step: Step, rng: random.Random) -> Question | None:
    if not step.after.finished:
        return None
    answer = f"{', '.join(step.after.finished)}; the queue is {' '.join(map(str, step.after.free_queue))}"
    return ask(step, "Who is finished with the next step, and what is the free queue when it is over?", answer)


KINDS: list[Callable[[Step, random.Random], Question | None]] = [
    who_gives_way, what_is_copied, who_is_done, whose_table, free_queue, how_many_tokens, which_slots,
]  # fmt: skip
