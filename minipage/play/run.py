"""Requests on an engine that is made for them: the same ones can be served again, by an engine with other options.

    Run(build, options, asks) ── step, step, step … ──▶ trace ──▶ Figures

Requests come at the step at which they were first asked, and draw from the same seeds; so what differs between two runs
is what the options do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from minipage.errors import InvalidRequestError
from minipage.sampling import SamplingParams
from minipage.trace.recording.recorder import observed
from minipage.trace.recording.replay import Change

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

Build = Callable[..., "LLM"]  # makes an engine of its options
MOST_STEPS = 1000  # that are played to the end where nobody watches


@dataclass(frozen=True)
class Ask:
    """A request, and when it came."""

    request_id: str
    prompt: str
    params: Mapping[str, Any] = field(default_factory=dict)  # of SamplingParams
    priority: int = 0
    step: int = 0  # this many steps were done before it came
    abort_step: int | None = None  # and before it was aborted

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(**self.params)


class Figures(NamedTuple):
    """What came of a run."""

    steps: int
    served: int  # requests that came to their end
    most_blocks: int  # in use at once
    waste: float  # share of the slots in blocks in use that were empty, averaged over the steps
    preemptions: int
    computed: int  # tokens
    recomputed: int  # those of them that had been computed before
    hit_rate: float  # share of the prompts' tokens that the prefix cache had
    first_done: str  # the request that was done first


class Changes(list[Change]):
    """The changes of a trace; `tell` is called after each phase."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self.tell = tell

    def append(self, change: Change) -> None:
        super().append(change)
        self.tell()


class Run:
    """An engine of its own for some requests.

    Args:
        tell: called after each phase of each step.

    Raises:
        ConfigurationError: the options make no sense.
        InvalidRequestError: an engine with these options cannot serve one of the requests.
    """

    def __init__(
        self, build: Build, options: Mapping[str, Any], asks: Sequence[Ask] = (), tell: Callable[[], None] | None = None
    ) -> None:
        self.llm = build(**options)
        self.options = dict(options)
        self.asks: list[Ask] = []
        self._came: set[str] = set()
        self.steps_done = 0
        self.reasons: dict[str, str] = {}  # request id -> how it ended
        self.errors: dict[str, str] = {}
        for ask in asks:
            self.check(ask)
        self.llm.step()  # which tells of those that were only tried
        self._recording = ExitStack()
        self.recorder = self._recording.enter_context(observed(self.llm))
        self.trace = self.recorder.trace
        for ask in asks:
            self.add(ask)
        if tell:
            self.trace.changes = Changes(tell)

    def check(self, ask: Ask) -> None:
        """Raise InvalidRequestError if the engine cannot serve it."""
        try:
            self.llm.abort(self.llm.add_request(ask.prompt, ask.sampling, f"a try of {ask.request_id}"))
        except InvalidRequestError as error:
            raise InvalidRequestError(f"request {ask.request_id}: {error}") from None

    def add(self, ask: Ask) -> None:
        """It comes now, or later, at its step. Raises InvalidRequestError."""
        self.asks.append(ask)
        try:
            self._let_in()
        except InvalidRequestError:
            self.asks.pop()
            raise

    def abort(self, request_id: str) -> None:
        """Now; when the requests are served again, at the same step."""
        self.asks = [replace(a, abort_step=self.steps_done) if a.request_id == request_id else a for a in self.asks]
        self.llm.abort(request_id)
        self.reasons[request_id] = "abort"

    @property
    def has_work(self) -> bool:
        return self.llm.has_unfinished_requests() or bool(self._coming)

    @property
    def _coming(self) -> list[Ask]:
        return [ask for ask in self.asks if ask.request_id not in self._came]

    def _let_in(self) -> None:
        for ask in self._coming:
            if ask.step <= self.steps_done:
                self.llm.add_request(ask.prompt, ask.sampling, ask.request_id, ask.priority)
                self._came.add(ask.request_id)

    def step(self) -> None:
        """One step of the engine; raises what its parts raise."""
        if not self.llm.has_unfinished_requests():  # it was slower the last time: nobody waits for that
            self.steps_done = min((ask.step for ask in self._coming), default=self.steps_done)
            self._let_in()
        for ask in self.asks:
            if ask.abort_step == self.steps_done and ask.request_id in self.llm.requests:
                self.llm.abort(ask.request_id)
        try:
            outputs = self.llm.step()
        finally:
            self.steps_done += 1
            self._let_in()
        for output in outputs:
            if output.finished and output.request_id in self._came:
                self.reasons[output.request_id] = output.outputs[0].finish_reason or "stop"
                if output.error:
                    self.errors[output.request_id] = output.error

    def go_on(self, num_steps: int = MOST_STEPS) -> None:
        """At most this many steps more, with nobody watching."""
        self.trace.changes = [*self.trace.changes]  # which tells nobody
        for _ in range(num_steps):
            if not self.has_work:
                break
            self.step()

    def close(self) -> None:
        with suppress(Exception):
            self._recording.close()

    def figures(self) -> Figures:
        frames = [frame for frame in self.trace.steps if frame.chunks]
        reached: dict[str, int] = {}  # label -> tokens computed so far
        computed = recomputed = 0
        for frame in frames:
            for chunk in frame.chunks:
                end, before = chunk.start + chunk.num_tokens, reached.get(chunk.label, 0)
                computed += chunk.num_tokens
                recomputed += max(0, min(end, before) - chunk.start)
                reached[chunk.label] = max(before, end)
        wasted = [f.num_wasted_slots / (f.num_used_blocks * f.block_size) for f in frames if f.num_used_blocks]
        scheduler = self.llm.scheduler
        served = [name for name, reason in self.reasons.items() if reason not in ("abort", "error")]
        return Figures(
            steps=len(frames),
            served=len(served),
            most_blocks=max((frame.num_used_blocks for frame in frames), default=0),
            waste=sum(wasted) / max(1, len(wasted)),
            preemptions=self.llm.stats()["vllm:num_preemptions"],
            computed=computed,
            recomputed=recomputed,
            hit_rate=scheduler.num_hit_tokens / max(1, scheduler.num_queried_tokens),
            first_done=served[0] if served else "",
        )
