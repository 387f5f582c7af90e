"""The demo: three requests of different length, which arrive at different times and share a small memory.

The memory is a little too small for all three at their longest, so that all there is to see can be seen: blocks handed
out one by one, a prompt computed in chunks, a request preempted and recomputed, blocks that come back and are used
again by somebody else.

In a terminal it plays on the full screen; anywhere else, every step is printed, one after the other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.text import Text

from minipage.errors import ConfigurationError
from minipage.trace.frames import Frame, label_of
from minipage.trace.glyphs import DIM, Glyphs, chip, glyphs_for, visible
from minipage.trace.player import Player, play
from minipage.trace.recorder import record
from minipage.trace.spinner import spinner
from minipage.trace.terminal import MIN_WIDTH, draw

if TYPE_CHECKING:
    from minipage.engine import LLM

PLAIN_WIDTH = 80  # columns where there is no terminal to ask
ARRIVAL_STEPS = (0, 2, 5)  # of the first requests; each further one comes 3 steps later
BLOCK_SIZE, NUM_BLOCKS, MAX_NUM_BATCHED_TOKENS = 4, 16, 8  # small enough to see every slot
SEED, TEMPERATURE = 69, 0.8
MAX_TOKENS = 16  # for prompts of the viewer's own


class Arrival(NamedTuple):
    """A request that will be made."""

    step: int  # steps that are done before it comes
    prompt: str
    max_tokens: int


STORY = [
    Arrival(ARRIVAL_STEPS[0], "KING RICHARD III:\nMy kingdom for a", 14),
    Arrival(ARRIVAL_STEPS[1], "JULIET:\nO Romeo,", 18),
    Arrival(ARRIVAL_STEPS[2], "ROMEO:\nO, she doth teach the torches to", 12),
]


def run(
    *,
    prompts: list[str] | None = None,  # instead of the three
    max_tokens: int | None = None,  # for every request
    model: str | None = None,  # None: the shipped one
    block_size: int = BLOCK_SIZE,
    num_blocks: int = NUM_BLOCKS,
    max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
    seed: int = SEED,
    steps: int | None = None,  # stop after so many
    plain: bool = False,  # print even in a terminal
) -> None:
    """Run the demo on standard output. Raises MinipageError if the model or a request cannot be served."""
    if steps is not None and steps < 1:
        raise ConfigurationError(f"{steps} steps are too few to watch; it takes at least 1.")
    with spinner("loading the model"):
        from minipage.engine import LLM  # with numba and all it takes half a second

        make = partial(LLM, block_size=block_size, num_blocks=num_blocks, max_num_batched_tokens=max_num_batched_tokens)
        llm = make() if model is None else make(model)
        demo = Demo(llm, cast(prompts, max_tokens), seed)
    console = PipeConsole(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    glyphs = glyphs_for(console.encoding)
    frames = islice(demo.frames(), steps)
    with spinner("computing the first step (on a new machine this compiles the kernels, once)"):
        first = next(frames)
    if sys.stdin.isatty() and sys.stdout.isatty() and not plain and not console.is_dumb_terminal:
        player = Player(first, frames, glyphs)
        play(player, console)
        last = player.frame
        _print_frame(last, console, glyphs)
    else:
        for last in chain([first], frames):
            _print_frame(last, console, glyphs)
    _print_texts(last, console, glyphs)


def cast(prompts: list[str] | None, max_tokens: int | None) -> list[Arrival]:
    """Who appears in the demo, and when."""
    arrivals = STORY
    if prompts:
        last = len(ARRIVAL_STEPS) - 1
        steps = [ARRIVAL_STEPS[min(i, last)] + 3 * max(0, i - last) for i in range(len(prompts))]
        arrivals = [Arrival(step, prompt, MAX_TOKENS) for step, prompt in zip(steps, prompts, strict=True)]
    if max_tokens is not None:
        arrivals = [arrival._replace(max_tokens=max_tokens) for arrival in arrivals]
    return arrivals


class PipeConsole(Console):
    """When the reader of a pipe has seen enough (`| head`), rich ends the process; here the caller decides."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _print_frame(frame: Frame, console: Console, glyphs: Glyphs) -> None:
    console.print(draw(frame, max(console.width, MIN_WIDTH), None, glyphs))
    console.print()


class Demo:
    """The requests on their engine, one step at a time."""

    def __init__(self, llm: LLM, arrivals: list[Arrival], seed: int) -> None:
        from minipage.sampling import SamplingParams

        self.llm = llm
        self.arrivals = arrivals
        self.params = [
            SamplingParams(temperature=TEMPERATURE, seed=seed + i, max_tokens=arrival.max_tokens)
            for i, arrival in enumerate(arrivals)
        ]
        for arrival, params in zip(arrivals, self.params, strict=True):
            llm.abort(llm.add_request(arrival.prompt, params))  # what cannot be served is refused before the curtain

    def frames(self) -> Iterator[Frame]:
        """Run step by step; yields how each one ended."""
        waiting = list(enumerate(self.arrivals))
        steps_done = 0
        with record(self.llm) as trace:
            while waiting or self.llm.has_unfinished_requests():
                while waiting and waiting[0][1].step <= steps_done:
                    i, arrival = waiting.pop(0)
                    self.llm.add_request(arrival.prompt, self.params[i], request_id=label_of(i))
                self.llm.step()
                steps_done += 1
                if len(trace) and trace[-1].phase == "update":
                    yield trace[-1]


def _print_texts(frame: Frame, console: Console, glyphs: Glyphs) -> None:
    """What became of each request, over as many lines as it has, and the block table it had."""
    for seq in frame.all_sequences:
        lines = Text.assemble(chip(seq.label), " ", (_lines(seq.prompt, glyphs), DIM), _lines(seq.text, glyphs))
        generated = f"{len(seq.tokens) - seq.num_prompt_tokens} tokens generated"
        reason = f" ({seq.finish_reason})" if seq.finish_reason else ""
        table = " ".join(map(str, seq.blocks or seq.last_blocks)) or "empty"
        lines.append(f"\n    [{generated}, {seq.status}{reason}; block table {table}]", DIM)
        console.print(lines, soft_wrap=True)


def _lines(text: str, glyphs: Glyphs) -> str:
    """`text` over several lines, all of them indented but the first."""
    return "\n    ".join(visible(line, glyphs) for line in text.split("\n"))
