"""What a story of the demo is made of: requests, an engine for them, and what to say when something is seen first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from minipage.trace.frames import Frame
from minipage.trace.replay import Trace

if TYPE_CHECKING:
    from minipage.engine import LLM

ARRIVAL_STEPS = (0, 2, 5)  # of the viewer's own prompts; each further one comes 3 steps later
MAX_TOKENS = 16  # for prompts of the viewer's own


class Arrival(NamedTuple):
    """A request that will be made."""

    step: int  # steps that are done before it comes
    prompt: str
    max_tokens: int
    params: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it): more for SamplingParams
    num_prompt_tokens: int | None = None  # the prompt is repeated and cut to so many; None: it is taken as it is


class Turn(NamedTuple):
    """A sentence, and what has to be seen before it is said."""

    when: Callable[[Frame], object]
    say: str


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
    beside: Callable[[LLM], Beside] | None = None  # what else is to be recorded
    num_steps: int | None = None  # it is over after so many, whoever still runs

    def with_prompts(self, prompts: list[str] | None, max_tokens: int | None) -> Scenario:
        """The same with the viewer's own texts."""
        arrivals = self.arrivals
        if prompts and arrivals[0].num_prompt_tokens:  # they are here for their lengths, and those stay
            pairs = zip(arrivals, cycle(prompts))
            arrivals = tuple(arrival._replace(prompt=prompt) for arrival, prompt in pairs)
        elif prompts:
            last = len(ARRIVAL_STEPS) - 1
            steps = [ARRIVAL_STEPS[min(i, last)] + 3 * max(0, i - last) for i in range(len(prompts))]
            params = arrivals[0].params
            arrivals = tuple(Arrival(step, text, MAX_TOKENS, params) for step, text in zip(steps, prompts, strict=True))
        if max_tokens is not None:
            arrivals = tuple(arrival._replace(max_tokens=max_tokens) for arrival in arrivals)
        return replace(self, arrivals=arrivals)
