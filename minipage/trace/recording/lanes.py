"""Two lanes of a run: what the host does when, and what the device. Between two steps of the device there are gaps,
which steps that overlap close.

    with watch_lanes(llm) as lanes:
        llm.generate(["To be, or not to be"])
    lanes.save("lanes.json")     for ui.perfetto.dev
    lanes.idle                   the share of the time in which the device waited for the host

Unlike `record`, this looks at the runner and not at the engine's phases, so that steps go on overlapping. The end of a
step is when the host saw it; on a CPU, host and device are the same processor, and take turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from minipage.trace.recording.meanwhile import replaced

if TYPE_CHECKING:
    from minipage.engine.engine import Engine

LANES = "host", "device"


@dataclass
class Span:
    lane: str  # "host" or "device"
    name: str
    start: float  # seconds on the clock of time.perf_counter()
    stop: float


@dataclass
class Lanes:
    spans: list[Span] = field(default_factory=list)

    def of(self, lane: str) -> list[Span]:
        return sorted((span for span in self.spans if span.lane == lane), key=lambda span: span.start)

    @property
    def idle(self) -> float:
        """The share of the time, from the device's first step to the end of its last, in which it computed nothing."""
        steps = self.of("device")
        whole = steps[-1].stop - steps[0].start if steps else 0.0
        return 1 - sum(step.stop - step.start for step in steps) / whole if whole else 0.0

    def save(self, path: str | Path) -> None:
        """Write them for chrome://tracing and ui.perfetto.dev."""
        first = min((span.start for span in self.spans), default=0.0)
        facts: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "minipage"}}]
        for number, lane in enumerate(LANES, 1):
            facts.append({"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": lane}})
            for span in self.of(lane):
                start, length = 1e6 * (span.start - first), 1e6 * (span.stop - span.start)
                facts.append({"ph": "X", "pid": 1, "tid": number, "ts": start, "dur": length, "name": span.name})
        Path(path).write_text(json.dumps({"traceEvents": facts, "displayTimeUnit": "ms"}), encoding="utf-8")


@contextmanager
def watch_lanes(llm: Engine) -> Iterator[Lanes]:
    """What `llm` does within the block, in two lanes."""
    watcher = Watcher(llm)
    with ExitStack() as stack:
        for owner, name, method in watcher.replacements():
            stack.enter_context(replaced(owner, name, method))
        yield watcher.lanes


class Watcher:
    """Stands in for an engine's step and its runner's methods, and looks at the clock."""

    def __init__(self, llm: Engine) -> None:
        self.llm = llm
        self.lanes = Lanes()
        self._waits: list[tuple[float, float]] = []  # of the step that is being made
        self._device_stop = 0.0  # the end of what the device did last
        self._num_launched = self._num_plain = 0
        self._began: float | None = None  # a plain step
        self._is_launching = False  # what the runner is asked for is part of a step that overlaps

    def replacements(self) -> list[tuple[object, str, Callable[..., Any]]]:
        runner, overlap = self.llm.runner, getattr(self.llm, "overlap", None)
        self._step, self._compute, self._sample = self.llm._step, runner.compute, runner.sample
        watched: list[tuple[object, str, Callable[..., Any]]] = [
            (self.llm, "_step", self.step), (runner, "compute", self.compute), (runner, "sample", self.sample),
        ]  # fmt: skip
        if overlap is not None:
            self._launch = overlap._launch
            watched.append((overlap, "_launch", self.launch))
        return watched

    def step(self) -> None:
        """The host is busy, except where it waits for the device."""
        start = perf_counter()
        self._waits = []
        self._step()
        for number, (begin, end) in enumerate([*self._waits, (perf_counter(), 0.0)]):
            self.lanes.spans.append(Span("host", "update" if number else "plan", start, begin))
            start = end

    def launch(self, *step: Any) -> Callable[[], Any]:
        with self._launching():
            wait = self._launch(*step)
        self._num_launched += 1
        launched, number, is_apart = perf_counter(), self._num_launched, hasattr(self.llm.runner, "launch")

        def watched() -> Any:
            begin = perf_counter()
            with self._launching():
                tokens = wait()
            start = max(launched, self._device_stop) if is_apart else begin
            self._computed(f"step {number}", start, begin, perf_counter())
            return tokens

        return watched

    def compute(self, *arguments: Any) -> Any:
        self._began = None if self._is_launching else perf_counter()
        return self._compute(*arguments)

    def sample(self, *arguments: Any) -> Any:
        tokens = self._sample(*arguments)
        if self._began is not None:
            self._num_plain += 1
            self._computed(f"plain step {self._num_plain}", self._began, self._began, perf_counter())
        return tokens

    @contextmanager
    def _launching(self) -> Iterator[None]:
        self._is_launching = True
        try:
            yield
        finally:
            self._is_launching = False

    def _computed(self, name: str, start: float, waited_from: float, stop: float) -> None:
        self.lanes.spans.append(Span("device", name, start, stop))
        self._waits.append((waited_from, stop))
        self._device_stop = stop
