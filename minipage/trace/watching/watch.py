"""Watches an engine while somebody looks, and not a moment longer.

    engine's thread ── changes ──▶ painter's thread ── frames ──▶ Feed ──▶ viewers
       recorder                      replays them, and makes
                                     a frame now and then

The first viewer lets the recorder be put on, between two steps, and the last one lets it be taken off. The engine's
thread only writes down what each phase has changed. Whatever takes longer is done by a thread of its own, which may use
a small share of the time: the more there is to draw, the fewer frames there are. Who reads slowly gets fewer still.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from copy import copy
from itertools import groupby
from typing import Any

from minipage.engine.async_llm import AsyncLLM
from minipage.errors import EngineDeadError
from minipage.trace.drawing.html import Tree, as_tree
from minipage.trace.recording.frames import ENDS, Frame
from minipage.trace.recording.recorder import observed
from minipage.trace.recording.replay import Change, State, Vocabulary, replay
from minipage.trace.recording.trace import ROUTINE, Trace
from minipage.trace.watching.feed import Feed, Viewer, waking

SHARE = 0.05  # of a core, which drawing may take
SOONEST, LATEST = 0.1, 3.0  # seconds from one frame to the next
MOST_CHANGES = 1000  # phases that are kept while nobody is ready for more
MOST_WAITING = 24  # texts that wait and are shown; of the others only the number
MOST_FINISHED = 6  # finished texts that stay, the last ones
MOST_REMEMBERED = 12  # sentences on who had to give way
REMEMBERED = "is preempted", "is aborted", "are aborted", "The step failed", "back from swap", "is back:"


class Watch:
    """One engine, and everybody who looks at it.

    Args:
        words: whether texts are shown; without, each token is a dot.
    """

    def __init__(self, llm: AsyncLLM, words: bool = True) -> None:
        self.llm = llm
        self.words = words
        self.feed = Feed()
        self._recording: ExitStack | None = None  # what takes the recorder off; the engine's thread sees to it
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None  # the painter's

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[tuple[Viewer, asyncio.Event]]:
        """A viewer, and the event that is set when it may find something. Raises EngineDeadError."""
        news = asyncio.Event()
        news.set()
        viewer = self.feed.join(waking(asyncio.get_running_loop(), news))
        try:
            self.llm.between_steps(self._settle)  # nobody waits for that: frames come when they come
            yield viewer, news
        finally:
            self.feed.leave(viewer)
            with suppress(EngineDeadError):
                self.llm.between_steps(self._settle)

    def _settle(self) -> None:
        """On the engine's thread: record if somebody looks, and else do not."""
        if self.feed.num_viewers and self._recording is None:
            self._recording = ExitStack()
            recorder = self._recording.enter_context(observed(self.llm.engine, with_code=False))
            self._stop = threading.Event()
            painter = Painter(self, recorder.trace, self._stop, self._thread)
            self._thread = threading.Thread(target=painter.run, name="minipage live", daemon=True)
            self._thread.start()
        elif not self.feed.num_viewers and self._recording is not None:
            self._stop.set()
            self._recording.close()
            self._recording = None


class Painter:
    """Makes frames of what is recorded, in a thread of its own."""

    def __init__(self, watch: Watch, trace: Trace, stop: threading.Event, before: threading.Thread | None) -> None:
        self.watch = watch
        self.feed = watch.feed
        self.changes = trace.changes
        self.stop = stop
        self.before = before  # another painter, which may not have noticed yet that it is to stop
        self.state = State(trace.header, trace.vocabulary if watch.words else Dots())
        self.has_news = False
        self.told: list[str] = []
        self.remembered: deque[tuple[int, str]] = deque(maxlen=MOST_REMEMBERED)

    def run(self) -> None:
        if self.before:
            self.before.join()
        self.feed.restart()
        self.show()
        pause = SOONEST
        while not self.stop.wait(pause):
            begin = time.thread_time()
            if not self.watch.llm.is_alive:
                self.feed.tell(end="The engine has stopped.")
                return
            if self.feed.is_awaited or len(self.changes) > MOST_CHANGES:
                self.has_news |= self.catch_up()
            if self.feed.is_awaited and self.has_news:
                self.show()
            pause = min(max(SOONEST, (time.thread_time() - begin) / SHARE), LATEST)

    def catch_up(self) -> bool:
        """Replay the steps that are over; whether there were any. They are forgotten then."""
        ready = self.changes[: end_of_steps(self.changes)]
        del self.changes[: len(ready)]
        steps = [list(step) for _, step in groupby(ready, key=lambda change: change["step"])]
        for i, step in enumerate(steps):
            is_last = i == len(steps) - 1
            if is_last or any(is_remarkable(change) for change in step):  # sentences take time
                told = [(change["phase"], replay(change, self.state, tell=True)) for change in step]
                self.told = [sentence for phase, its in told if phase not in ROUTINE for sentence in its]
                said = [sentence for sentence in self.told if any(part in sentence for part in REMEMBERED)]
                self.remembered += [(self.state.step, sentence) for sentence in said]
            else:
                for change in step:
                    replay(change, self.state)
        return bool(steps)

    def show(self) -> None:
        self.has_news = False
        forget_past(self.state)
        self.feed.push(live_tree(self.state, self.told) | {"remembered": list(self.remembered)})
        self.feed.tell(stats=numbers(self.watch.llm.stats()), seconds=round(time.monotonic(), 3))


def end_of_steps(changes: list[Change]) -> int:
    """How many changes belong to steps that are over."""
    for i in range(len(changes) - 1, -1, -1):
        change = changes[i]
        if change["phase"] in ENDS or (change["phase"] == "schedule" and not change["chunks"]):
            return i + 1
    return 0


def is_remarkable(change: Change) -> bool:
    return "preempted" in change or "swap_in" in change or "earlier" in change or change["phase"] == "failed"


def forget_past(state: State) -> None:
    """Keep what can still be seen: an engine may run for weeks."""
    state.finished_before = state.finished_before[-MOST_FINISHED:]
    needed = {label for label, _ in state.homes.values()}  # whose words may be in blocks that the prefix cache finds
    state.words = {label: words for label, words in state.words.items() if label in needed}


def live_tree(state: State, told: list[str]) -> Tree:
    """What the page shows of this moment; of a long queue only its beginning, and its length."""
    shown = copy(state)
    waiting = state.queues["waiting"]
    unseen = {*waiting[MOST_WAITING:]}
    shown.texts = {label: text for label, text in state.texts.items() if label not in unseen}
    shown.queues = state.queues | {"waiting": waiting[:MOST_WAITING]}
    frame: Frame = shown.frame(told, 0, "")
    tree = {name: value for name, value in as_tree(frame).items() if name != "code"}
    return tree | ({"num_more_waiting": len(unseen)} if unseen else {})


def numbers(stats: dict[str, Any]) -> dict[str, float]:
    """Those of /metrics that the page tells."""
    wanted = "num_requests_running", "num_requests_waiting", "num_preemptions", "generation_tokens", "prompt_tokens"
    return {name: stats[f"vllm:{name}"] for name in wanted}


class Dots(Vocabulary):
    """In place of every word."""

    def __getitem__(self, token_id: int) -> bytes:
        return "\N{MIDDLE DOT}".encode()
