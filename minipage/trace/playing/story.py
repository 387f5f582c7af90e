"""What a story of the demo is made of: requests, an engine for them, and what to say when something is seen first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from minipage.trace.recording.frames import Frame
from minipage.trace.recording.trace import Trace

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

MAX_TOKENS = 16  # of the viewer's own texts, where there are more than the story has
PAUSE = 3  # steps between two such texts


class Arrival(NamedTuple):
    """A request that will be made."""

    step: int  # steps that are done before it comes
    prompt: str
    max_tokens: int
    params: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it): more for SamplingParams
    num_prompt_tokens: int | None = None  # the prompt is repeated and cut to this many; None: taken as it is
    after: int | None = None  # count the steps from the end of the request with this number

    @property
    def num_seqs(self) -> int:
        """Texts that are written at once."""
        most: int = self.params.get("beam_width") or self.params.get("n", 1)
        return most

    def is_due(self, steps_done: int, ends: Mapping[int, int]) -> bool:
        """Whether it comes now; `ends` says after which step each request was done."""
        start = 0 if self.after is None else ends.get(self.after)
        return start is not None and steps_done >= start + self.step


class Turn(NamedTuple):
    """A sentence, and what has to be seen before it is said."""

    when: Callable[[Frame], object]
    say: str
    # Said at the end if that was never seen, because texts or sizes of the viewer's prevent it; some say why.
    otherwise: str | Callable[[Frame], str] = ""

    def missed(self, last: Frame) -> str:
        """What to say after the last frame of a run that has not shown it."""
        return self.otherwise(last) if callable(self.otherwise) else self.otherwise


class Beside(Protocol):
    """Something that sees each step and adds to the trace what the recorder cannot know."""

    def around_step(self, trace: Trace) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    about: str  # a sentence for the list
    arrivals: tuple[Arrival, ...]
    turns: tuple[Turn, ...]
    engine: dict[str, Any] = field(default_factory=dict)  # options of LLM
    room: float = 2.0  # blocks in the pool, as a share of what all requests together could grow to; see pool_size.py
    runs_dry: bool = False  # the pool has to be too small for all of them at once: that is what the story is about
    num_slots: int | None = None  # the pool has this many, whatever is asked of it
    beginning: str = ""  # all prompts begin with this; a single text of the viewer's takes its place
    beside: Callable[[LLM], Beside] | None = None  # what else is to be recorded
    num_steps: int | None = None  # it is over after this many, even if somebody still runs

    def with_prompts(self, prompts: list[str] | None, max_tokens: int | None) -> Scenario:
        """The same with the viewer's own texts, each in the place of one of the story's."""
        arrivals = list(self.arrivals)
        if prompts and arrivals[0].num_prompt_tokens:  # they are here for their lengths, which stay
            arrivals = [arrival._replace(prompt=text) for arrival, text in zip(arrivals, cycle(prompts))]
        elif prompts and prompts[0] and self.beginning and len(prompts) == 1:
            begin = prompts[0].rstrip("\n") + "\n"
            arrivals = [arrival._replace(prompt=arrival.prompt.replace(self.beginning, begin)) for arrival in arrivals]
        else:
            for i, text in enumerate(prompts or ()):
                if i < len(arrivals):
                    arrivals[i] = arrivals[i]._replace(prompt=text)
                else:
                    last = arrivals[-1]  # if it comes when somebody has ended, so does this: after it
                    step, after = (last.step + PAUSE, None) if last.after is None else (last.step, i - 1)
                    arrivals.append(Arrival(step, text, MAX_TOKENS, last.params, after=after))
        if max_tokens is not None:
            arrivals = [arrival._replace(max_tokens=max_tokens) for arrival in arrivals]
        return replace(self, arrivals=tuple(arrivals))
