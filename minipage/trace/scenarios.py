"""The stories that the demo tells: what is asked of which engine, and what to say when something is seen first.

Every story runs the real engine on the real model. Its sentences wait for what they speak of: a turn is told at the
first step at whose end its condition holds, so that a story stays true with other prompts, sizes and seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

from minipage.errors import ConfigurationError
from minipage.trace.frames import Frame

ARRIVAL_STEPS = (0, 2, 5)  # of the viewer's own prompts; each further one comes 3 steps later
MAX_TOKENS = 16  # for prompts of the viewer's own


class Arrival(NamedTuple):
    """A request that will be made."""

    step: int  # steps that are done before it comes
    prompt: str
    max_tokens: int
    params: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it): more for SamplingParams


class Turn(NamedTuple):
    """A sentence, and what has to be seen before it is said."""

    when: Callable[[Frame], object]
    say: str


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    about: str  # a sentence for the list
    arrivals: tuple[Arrival, ...]
    turns: tuple[Turn, ...]
    engine: dict[str, Any] = field(default_factory=dict)  # options of LLM

    def with_prompts(self, prompts: list[str] | None, max_tokens: int | None) -> Scenario:
        """The same with the viewer's own texts."""
        arrivals = self.arrivals
        if prompts:
            last = len(ARRIVAL_STEPS) - 1
            steps = [ARRIVAL_STEPS[min(i, last)] + 3 * max(0, i - last) for i in range(len(prompts))]
            params = arrivals[0].params
            arrivals = tuple(Arrival(step, text, MAX_TOKENS, params) for step, text in zip(steps, prompts, strict=True))
        if max_tokens is not None:
            arrivals = tuple(arrival._replace(max_tokens=max_tokens) for arrival in arrivals)
        return replace(self, arrivals=arrivals)


def find_scenario(name: str) -> Scenario:
    """Raises ConfigurationError for a name that there is not, and suggests the nearest."""
    if name in SCENARIOS:
        return SCENARIOS[name]
    near = get_close_matches(name, SCENARIOS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "`demo --list` shows them."
    raise ConfigurationError(f"there is no scenario {name!r}; {hint}")


def step_is(number: int) -> Callable[[Frame], bool]:
    return lambda frame: frame.step >= number


def newly_used(frame: Frame) -> bool:
    return any("needs a block" in event for event in frame.events)


RICHARD = "KING RICHARD III:\nMy kingdom for a"
JULIET = "JULIET:\nO Romeo,"
ROMEO = "ROMEO:\nO, she doth teach the torches to"
FRIENDS = "First Citizen:\nBefore we proceed any further, hear me speak.\n"

FIRST_TURNS = (
    Turn(step_is(1), "The prompt is cut into blocks, and each is put wherever the pool has room."),
    Turn(lambda f: not f.chunks or newly_used(f), "A last block is full: the next token gets a new one, and only now."),
)
PREEMPTED = Turn(
    lambda f: f.preempted,
    "The pool is dry: who came last gives all its blocks up, and the first goes on.",
)

ALL = (
    Scenario(
        "basics",
        "A text in pages",
        "one request: how a block table grows, block by block",
        (Arrival(0, RICHARD, 14),),
        (
            *FIRST_TURNS,
            Turn(step_is(4), "Every step computes one token: its K and V go to the slot that the table names."),
            Turn(lambda f: f.finished, "Done. The blocks go back, the last one first, for somebody else to use."),
        ),
        {"num_blocks": 12},
    ),
    Scenario(
        "continuous-batching",
        "Who comes, runs; who is done, goes",
        "three requests come at different times and share one small pool",
        (Arrival(0, RICHARD, 14), Arrival(2, JULIET, 18), Arrival(5, ROMEO, 12)),
        (
            Turn(step_is(1), "One request begins alone; the others come while it runs."),
            Turn(lambda f: len(f.running) > 1, "A second one joins at once: nobody waits for a batch to be over."),
            Turn(lambda f: len(f.running) > 2, "Three of them, and their blocks lie mixed. Each table knows its own."),
            PREEMPTED,
            Turn(lambda f: f.finished, "One is done and leaves; its blocks are free for others in the same step."),
            Turn(
                lambda f: any("is back" in event for event in f.events),
                "Who gave way is back: its prompt and what it had written are computed again.",
            ),
        ),
    ),
    Scenario(
        "chunked-prefill",
        "A long prompt in small pieces",
        "a long prompt is computed in chunks, so that others need not stop",
        (Arrival(0, JULIET, 16), Arrival(2, FRIENDS + RICHARD, 8)),
        (
            Turn(step_is(1), "A step computes 8 tokens at most. A short prompt fits."),
            Turn(
                lambda f: any(chunk.num_tokens > 1 for chunk in f.chunks) and f.step > 2,
                "A long prompt comes. Who runs goes first, and the prompt gets what is left of the 8 tokens.",
            ),
            Turn(
                lambda f: f.step > 5 and all(chunk.num_tokens == 1 for chunk in f.chunks),
                "The prompt is complete. From now on both get one token a step.",
            ),
        ),
        {"num_blocks": 20},
    ),
    Scenario(
        "copy-on-write",
        "Three samples, one prompt",
        "samples share the blocks of their prompt, and copy the one they write into",
        (Arrival(0, RICHARD, 9, {"n": 3}),),
        (
            Turn(
                step_is(1),
                "Three texts of one prompt: it is computed once, by A. The others fork its block table: "
                "the same blocks, nothing copied. The number in a block counts who shares it.",
            ),
            Turn(
                lambda f: f.copies,
                "Now they go on differently. Who writes into a shared block gets a copy first; "
                "the last of them writes in place.",
            ),
            Turn(newly_used, "New blocks are each one's own. The full ones of the prompt stay shared to the end."),
            Turn(lambda f: f.finished, "A block is free only when the last of those who share it lets go."),
        ),
        {"num_blocks": 16, "max_num_batched_tokens": 16},
    ),
    Scenario(
        "beam",
        "Beams branch and die",
        "beam search keeps the three best texts; tables fork when a beam branches",
        (Arrival(0, JULIET, 10, {"beam_width": 3}),),
        (
            Turn(step_is(1), "The three likeliest first words make three beams, over the very same blocks."),
            Turn(lambda f: f.copies, "Each beam writes its own word: the shared last block is copied for all but one."),
            Turn(
                lambda f: any("none of its" in event for event in f.events),
                "A beam whose continuations are not among the best dies, and gives its blocks back.",
            ),
            Turn(lambda f: f.step > 4 and f.copies, "A good beam branches again: a new table, and one copied block."),
            Turn(lambda f: f.finished and not f.running, "The search is over: the best text is what remains."),
        ),
        {"num_blocks": 24, "max_num_batched_tokens": 16},
    ),
    Scenario(
        "prefix",
        "What was computed once",
        "requests that begin alike share blocks, even after the first is done",
        (Arrival(0, FRIENDS + "All:\nSpeak", 6), Arrival(9, FRIENDS + RICHARD, 6), Arrival(11, FRIENDS + JULIET, 6)),
        (
            Turn(step_is(1), "Every full block is known by the text that it ends: the prefix cache can find it."),
            Turn(lambda f: f.finished, "The request is done and its blocks are free, but they keep what they hold."),
            Turn(
                lambda f: f.num_hit_tokens,
                "A request that begins alike finds them, and takes them out of the free queue: nothing to compute.",
            ),
            Turn(
                lambda f: any(b.ref_count > 1 for b in f.blocks),
                "And one more, while they are in use: now the blocks are shared.",
            ),
        ),
        {"num_blocks": 20, "max_num_batched_tokens": 16, "enable_prefix_caching": True},
    ),
    Scenario(
        "preemption",
        "Giving way",
        "the pool runs dry: the latest loses its blocks, and is computed again",
        (Arrival(0, RICHARD, 16), Arrival(1, JULIET, 16)),
        (
            Turn(step_is(1), "Nobody knows how long a text will get, so blocks are handed out as they are needed."),
            PREEMPTED,
            Turn(
                lambda f: f.waiting and not f.preempted,
                "It keeps its words. Only K and V are gone, and those can be computed again.",
            ),
            Turn(
                lambda f: any("is back" in event for event in f.events),
                "There is room again. Prompt and words are computed like one long prompt.",
            ),
        ),
        {"num_blocks": 9},
    ),
    Scenario(
        "swap",
        "Saved, not lost",
        "the pool runs dry: the latest one's blocks are saved in a second memory",
        (Arrival(0, RICHARD, 16), Arrival(1, JULIET, 16)),
        (
            Turn(step_is(1), "As in `preemption`, but there is a second memory to put blocks into."),
            Turn(lambda f: f.swap_out, "The pool is dry. The latest one's blocks are copied out, and are free here."),
            Turn(lambda f: f.swapped and not f.swap_out, "While anybody is swapped out, nobody new is admitted."),
            Turn(
                lambda f: f.swap_in,
                "Back again, in other blocks: only the table has changed, and nothing is computed twice.",
            ),
        ),
        {"num_blocks": 9, "preemption": "swap", "swap_space": "1MiB"},
    ),
    Scenario(
        "quantized",
        "Nearly four times the blocks",
        "K and V in one byte a number: the memory of 9 blocks holds many more",
        (Arrival(0, RICHARD, 16), Arrival(1, JULIET, 16), Arrival(2, ROMEO, 12)),
        (
            Turn(step_is(1), "The memory is that of `preemption`, but each number takes one byte instead of four."),
            Turn(lambda f: len(f.running) > 2, "Three requests run where two were too many: there are more blocks."),
            Turn(lambda f: f.finished, "Nobody had to give way. The price: each K and V is rounded to 8 bits."),
        ),
        {"memory": 9 * 4 * 2 * 4 * 256 * 4, "kv_cache_dtype": "int8"},
    ),
)
SCENARIOS = {scenario.name: scenario for scenario in ALL}
DEFAULT = "continuous-batching"
