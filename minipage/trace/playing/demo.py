"""The demo: a story (scenarios.py) on the real engine, in a terminal, as a page, as pictures or as a file.

In a terminal it plays on the full screen; anywhere else, every step is printed, one after the other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, cycle, islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from minipage.errors import ConfigurationError, count
from minipage.languages import tell
from minipage.output import output_console
from minipage.trace.drawing.front import Card
from minipage.trace.drawing.glyphs import BOLD, DIM, Glyphs, chip, glyphs_for, visible
from minipage.trace.drawing.terminal import MIN_WIDTH, draw, fits, what_it_needs
from minipage.trace.playing.files import export, export_all
from minipage.trace.playing.keys import keyboard
from minipage.trace.playing.player import Player, play
from minipage.trace.playing.pool_size import pool_for
from minipage.trace.playing.quick_start import NOTE, kernel_name, quick_options
from minipage.trace.playing.scenarios import DEFAULT, SCENARIOS, find_scenario, story_after
from minipage.trace.playing.spinner import patiently, spinner
from minipage.trace.playing.story import Arrival, Scenario, Turn
from minipage.trace.recording.frames import Frame, index_of, is_stop, label_of
from minipage.trace.recording.recorder import record
from minipage.trace.recording.trace import Trace
from minipage.trace.recording.wording import join

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

PLAIN_WIDTH = 80  # columns where there is no terminal to ask
SMALL = {"block_size": 4, "num_blocks": 16, "max_num_batched_tokens": 8}  # small enough to see every slot
SEED = 69
TEMPERATURE = 0.8
EVERY = "all"  # in place of a scenario's name
LONG = 5.0  # seconds until it is said, where nothing can turn, that something is still being computed
MOST_TEXTS = 12  # printed whole at the end


def list_scenarios() -> None:
    """Two lines a story in a terminal, where they are wrapped and indented; one for a program that reads them."""
    console = console_for_output()
    for scenario in SCENARIOS.values():
        default = " (what is shown without a name)" if scenario.name == DEFAULT else ""
        title = Text.assemble((scenario.name, BOLD), f": {tell(scenario.title)}{default}")
        if console.is_terminal:
            console.print(title, Padding(Text(tell(scenario.about), DIM), (0, 0, 0, 4)))
        else:
            console.print(f"{title}; {tell(scenario.about)}", soft_wrap=True)


def run(
    name: str = DEFAULT,
    *,
    replay: str | None = None,  # a saved trace, instead of a scenario
    prompts: list[str] | None = None,  # instead of the scenario's
    max_tokens: int | None = None,  # for every request
    seed: int = SEED,
    steps: int | None = None,  # the most to run
    plain: bool = False,  # print even in a terminal
    files: dict[str, str] | None = None,  # kind of file (see exports.py) -> where to write it; then nothing is shown
    build: Callable[..., LLM] | None = None,  # makes the engine, instead of LLM
    note: str = "",  # for the title
    lessons: Sequence[Card] = (),  # for the index of all stories
    in_folder: bool = False,  # the pages of the other stories will lie beside this one
    **engine: Any,  # options of LLM, before the scenario's
) -> None:
    """Run a scenario on standard output. Raises MinipageError if the model or a request cannot be served; OSError."""
    for kind, path in (files or {}).items():
        if not path:
            raise ConfigurationError(f"the name of what {kind} is to be written to is empty; give it one.")
    if name == EVERY and replay is None:
        everywhere = {"prompts": prompts, "max_tokens": max_tokens, "seed": seed, "steps": steps, **engine}
        return export_all(
            files or {}, lambda story, its_files: run(story, files=its_files, in_folder=True, **everywhere), lessons
        )
    if files and len({Path(path) for path in files.values()}) < len(files):
        raise ConfigurationError("two kinds of file are to be written to the same place; give each a name of its own.")
    if steps is not None and steps < 1:
        raise ConfigurationError(f"steps is {steps}; to watch anything it takes at least 1.")
    console = console_for_output()
    full_screen = not (plain or files or console.is_dumb_terminal) and sys.stdin.isatty() and sys.stdout.isatty()
    if full_screen and not fits(*console.size):
        raise ConfigurationError(f"{what_it_needs(*console.size)} Make the terminal larger, or print with --plain.")
    recorded: Sequence[Frame] | None = None  # all frames at once, if they are there already
    last: Frame | None = None
    with keyboard(full_screen) as keys:
        if replay is not None:
            with spinner("reading the trace", keys):
                recorded = trace = load(replay)
            if steps is not None:
                recorded = list(takewhile(lambda frame: frame.step <= steps, trace))
            frames = iter(recorded)
        else:
            scenario = find_scenario(name).with_prompts(prompts, max_tokens)
            if note:
                scenario = replace(scenario, title=f"{tell(scenario.title)} ({note})")
            quick = quick_options(scenario.engine | engine)
            with spinner("loading the model", keys, LONG):
                demo = Demo(make_engine(scenario, engine | quick, build), scenario, seed)
            if cut := demo.what_is_cut():
                print(f"minipage: {cut}", file=sys.stderr)
            if quick:
                print(f"minipage: {NOTE}", file=sys.stderr)
            frames = demo.frames(steps)
        if files:
            with spinner("running the scenario", long=LONG):
                shown = list(frames)
            trace = trace if replay else demo.trace
            trace.header["in_folder"] = in_folder
            export(shown, trace, files)
            return
        glyphs = glyphs_for(console.encoding)
        with spinner("computing the first step", keys, LONG):
            first = next(frames, None)
        if first is None:
            print("The trace has no steps.")
            return
        last = first
        if keys:
            player = Player(first, frames, glyphs) if recorded is None else Player(recorded, iter(()), glyphs)
            play(player, console, keys)
            last = player.frame
        else:
            for last in filter(is_stop, chain([first], patiently(frames, "computing the next step", LONG))):
                _print_frame(last, console, glyphs)
    if last is None:  # the viewer has left before there was anything to see
        return
    if full_screen:
        _print_frame(last, console, glyphs)
    _print_texts(last, console, glyphs)
    if replay is None and (after := story_after(name)):
        told, command = f"Next story: {tell(after.title)}:", f"python -m minipage demo {after.name}"
        fits_beside = cell_len(told) + 1 + len(command) <= console.width
        console.print(Text(f"{told} {command}" if fits_beside else f"{told}\n    {command}", DIM), soft_wrap=True)


def make_engine(scenario: Scenario, options: dict[str, Any], build: Callable[..., LLM] | None = None) -> LLM:
    """An engine for a story. `options` of LLM go before the story's own.

    Unless one of the two says how large the pool is, it is as large as the story needs.
    """
    from minipage.engine.llm import LLM  # with numba and all it takes half a second

    build = build or LLM
    chosen: dict[str, Any] = SMALL | scenario.engine | options
    if "memory" in options:
        if "num_blocks" in options:
            raise ConfigurationError("num_blocks and memory both say how large the pool is; give one of them.")
        del chosen["num_blocks"]
    elif "num_blocks" not in options:
        sizes = pool_for(scenario, chosen)
        chosen = {name: value for name, value in chosen.items() if name != "num_blocks" or not sizes} | sizes
    return build(chosen.pop("model"), **chosen) if "model" in chosen else build(**chosen)


def load(path: str) -> Trace:
    """A saved trace. Raises TraceError, or OSError with a sentence."""
    try:
        return Trace.load(path)
    except OSError as error:
        raise OSError(f"{path!r} cannot be read: {error.strerror or error}.") from error


def console_for_output() -> Console:
    console = output_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PLAIN_WIDTH
    return console


def _print_frame(frame: Frame, console: Console, glyphs: Glyphs) -> None:
    console.print(draw(frame, max(console.width, MIN_WIDTH), None, glyphs))
    console.print()


class Demo:
    """The requests of a scenario on their engine, one step at a time."""

    def __init__(self, llm: LLM, scenario: Scenario, seed: int = SEED) -> None:
        from minipage.sampling import SamplingParams

        self.llm = llm
        self.scenario = scenario
        self.arrivals = scenario.arrivals
        self.params = []
        for i, arrival in enumerate(self.arrivals):
            drawn = {} if "beam_width" in arrival.params else {"temperature": TEMPERATURE, "seed": seed + i}
            self.params.append(SamplingParams(**{"max_tokens": arrival.max_tokens} | drawn | arrival.params))
        self.prompts = [fitted(arrival, llm) for arrival in self.arrivals]
        for prompt, params in zip(self.prompts, self.params, strict=True):
            llm.abort(llm.add_request(prompt, params))  # what cannot be served is refused before the curtain

    def what_is_cut(self) -> str:
        """Which requests have a max_tokens that the context has no room for, in a sentence."""
        cut = []
        for i, (prompt, params) in enumerate(zip(self.prompts, self.params, strict=True)):
            token_ids = self.llm.tokenizer.encode(prompt) if isinstance(prompt, str) and self.llm.tokenizer else prompt
            room = self.llm.max_model_len - len(token_ids)
            if params.max_tokens is not None and params.max_tokens > room:
                cut.append(f"{label_of(i)} {room}")
        if not cut:
            return ""
        asked = max(params.max_tokens or 0 for params in self.params)
        return (
            f"max_tokens is {asked}, but a context of {self.llm.max_model_len} tokens has room for fewer: {join(cut)}."
        )

    def frames(self, steps: int | None = None) -> Iterator[Frame]:
        """Run step by step, at most `steps` steps; yields every phase of each, as soon as the step is over."""
        coming = dict(enumerate(self.arrivals))
        ends = dict[int, int]()
        turns = list(self.scenario.turns)
        beside = self.scenario.beside and self.scenario.beside(self.llm)
        steps_done = 0
        steps = self.scenario.num_steps if steps is None else steps
        with record(self.llm, tell(self.scenario.title)) as self.trace:
            self.trace.header["kernel"] = kernel_name(self.llm)
            if after := story_after(self.scenario.name):
                self.trace.header["next"] = {"name": after.name, "title": tell(after.title)}
            while steps_done != steps and (coming or self.llm.has_unfinished_requests()):
                for i in [i for i, arrival in coming.items() if arrival.is_due(steps_done, ends)]:
                    del coming[i]
                    # Whoever comes later is more urgent, if the policy asks for that.
                    self.llm.add_request(self.prompts[i], self.params[i], request_id=label_of(i), priority=-i)
                seen = len(self.trace)
                with beside.around_step(self.trace) if beside else nullcontext():
                    outputs = self.llm.step()
                steps_done += 1
                ends |= {index_of(output.request_id): steps_done for output in outputs if output.finished}
                if len(self.trace) == seen:
                    continue  # nothing was left to compute, only to be told
                self._tell_turns(range(seen, len(self.trace)), turns)
                if not (coming or self.llm.has_unfinished_requests()):
                    last = self.trace[-1]
                    missed = dict.fromkeys(tell(turn.missed(last)) for turn in turns if turn.otherwise)
                    self.trace.changes[-1]["story"] = " ".join([last.story, *missed]).strip()
                yield from self.trace[seen:]
        for request_id in list(self.llm.requests):  # if it was stopped
            self.llm.abort(request_id)

    def _tell_turns(self, step: range, turns: list[Turn]) -> None:
        """Tell one turn of a step, from the frame on that shows it first; inside attention, one with each look."""
        looks = [i for i in step if self.trace[i].attention]
        others = [i for i in step if i not in looks]
        for moments in [*([i] for i in looks), others]:
            told = next(((turn, i) for turn in turns for i in moments if turn.when(self.trace[i])), None)
            if told:
                turns.remove(told[0])
                self.trace.changes[told[1]]["story"] = tell(told[0].say)


def fitted(arrival: Arrival, llm: LLM) -> str | list[int]:
    """Its prompt; as token ids, repeated and cut, if it should have a certain length."""
    if not arrival.num_prompt_tokens or not arrival.prompt or llm.tokenizer is None:
        return arrival.prompt
    return list(islice(cycle(llm.tokenizer.encode(arrival.prompt)), arrival.num_prompt_tokens))


def _print_texts(frame: Frame, console: Console, glyphs: Glyphs) -> None:
    """What became of each text, on as many lines as it takes, and the block table it had."""
    for seq in frame.all_sequences[:MOST_TEXTS]:
        name = Text.assemble(chip(seq.label), " ")
        told = Text.assemble((_lines(seq.prompt, glyphs), DIM), _lines(seq.text, glyphs))
        generated = count(len(seq.tokens) - seq.num_prompt_tokens, "token") + " generated"
        reason = f" ({seq.finish_reason})" if seq.finish_reason else ""
        table = " ".join("-" if block < 0 else str(block) for block in seq.blocks or seq.last_blocks) or "empty"
        told.append(f"\n[{generated}, {seq.status}{reason}; block table {table}]", DIM)
        for i, line in enumerate(told.wrap(console, max(console.width, MIN_WIDTH) - max(4, name.cell_len))):
            line.rstrip()
            console.print(Text.assemble("    " if i else name, line), soft_wrap=True)
    if (more := len(frame.all_sequences) - MOST_TEXTS) > 0:
        console.print(Text(f"and {count(more, 'more text')}", DIM))


def _lines(text: str, glyphs: Glyphs) -> str:
    """`text` on the lines that it has, with signs for all else that cannot be seen."""
    return "\n".join(visible(line, glyphs) for line in text.split("\n"))
