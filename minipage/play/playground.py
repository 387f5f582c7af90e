"""The engine that is shown, in a thread of its own: it rests, goes phase by phase, or runs.

    page ── acts ──▶ inbox ──▶ the thread ── after each phase: a frame ──▶ Feed ──▶ all pages
                                   │ stands still between two phases, until it may go on

The engine itself stands still, in the middle of a step: what is shown is how it is. Whatever changes something (a
request, other options) is done between two steps, so a step that has begun is first brought to its end. While no page
is open, nothing goes on.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from minipage.errors import ConfigurationError, InvalidRequestError, MinipageError
from minipage.play.challenges import CHALLENGES, Challenge, are_for
from minipage.play.run import Ask, Build, Figures, Run
from minipage.trace.drawing.html import as_tree, deltas, functions_of
from minipage.trace.recording.frames import ENDS
from minipage.trace.watching.feed import Feed

KEPT = 600  # frames that one can go back
PACES = 0.05, 10.0  # seconds a phase
MOST_ASKS = 64


class Playground:
    """One engine to play with, for any number of pages.

    Args:
        build: makes an engine of options, as LLM does.
        options: to begin with; those in `limits` of acts.py can be changed.
        blamed: goes around what may raise because of a learner's own parts, and says so.
    """

    def __init__(
        self,
        build: Build,
        options: dict[str, Any],
        blamed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.build = build
        self.blamed = blamed
        self.challenge: Challenge | None = None
        self.solved: set[str] = set()
        self.missing = ""
        self.feed = Feed(KEPT)
        self._changed = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._is_closing = False
        self._runs = False
        self._phases = 0  # that may still pass before it stands still
        self._to_end = False  # of this step
        self.pace = 0.6  # seconds a phase
        self.num_pages = 0
        self._next_id = 1
        self._whole: Run | None = None  # the same requests with the same options, to their end, if it is known
        with blamed():
            self.run = Run(build, options, tell=self._after_phase)
        self.challenges = CHALLENGES if are_for(self.run.llm.tokenizer) else {}
        self._has_work = False
        self._functions: dict[str, Any] = {}  # the source of those that frames name
        self._thread = threading.Thread(target=self._work, name="minipage play", daemon=True)
        self.run.recorder.glance()
        self.feed.tell(compare=None, before=None)  # a page may still show those of another playground that was here
        self._tell_all()
        self._thread.start()

    # ---- from any thread

    def call(self, act: Callable[[], Any]) -> Future[Any]:
        """Let the thread do something between two steps; what it raises, the answer raises."""
        answer: Future[Any] = Future()

        def order() -> None:
            try:
                answer.set_result(act())
            except Exception as error:
                answer.set_exception(error)

        with self._changed:
            if self._is_closing:
                raise ConfigurationError("this playground is closed.")
            self._inbox.append(order)
            self._changed.notify_all()
        return answer

    def pause(self) -> None:
        self._set(_runs=False, _phases=0, _to_end=False)

    def go(self) -> None:
        self._set(_runs=True)

    def step(self) -> None:
        """To the end of this step, or of the next one."""
        self._set(_runs=False, _to_end=True)

    def phase(self) -> None:
        self._set(_runs=False, _phases=self._phases + 1)

    def set_pace(self, seconds: float) -> None:
        if not (isinstance(seconds, int | float) and PACES[0] <= seconds <= PACES[1]):
            raise ConfigurationError(f"pace is {seconds!r}; it must be from {PACES[0]} to {PACES[1]} seconds a phase.")
        self._set(pace=float(seconds))

    def pages(self, change: int) -> None:
        """A page has come, or gone."""
        self._set(num_pages=self.num_pages + change)

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _set(self, **values: Any) -> None:
        with self._changed:
            vars(self).update(values)
            self._changed.notify_all()
        self._tell_mode()

    # ---- the thread

    def _work(self) -> None:
        while self._wait():
            while self._inbox:
                self._inbox.popleft()()
            if self._may_step():
                self._step()
        self.run.close()

    def _wait(self) -> bool:
        """Until there is something to do; False: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._inbox or self._may_step())
            self._stand_still()
            return not self._is_closing

    def _may_step(self) -> bool:
        wanted = self._runs or self._phases > 0 or self._to_end
        return wanted and self.num_pages > 0 and self.run.has_work

    def _step(self) -> None:
        try:
            with self.blamed():
                self.run.step()
        except Exception as error:
            said = str(error) if isinstance(error, MinipageError) else f"{type(error).__name__}: {error}"
            self.feed.tell(failure=f"A step failed. {said}")
            self._runs = False
        self._phases, self._to_end = 0, False
        self._tell_mode()
        self._tell_requests()

    def _after_phase(self) -> None:
        """A phase has passed: show it, and stand still until the next one may come."""
        self._push()
        change = self.run.trace.changes[-1]
        is_empty = change["phase"] == "schedule" and not change["chunks"]
        self._phases = max(0, self._phases - 1)
        self._tell_mode()
        if change["phase"] in ENDS or is_empty:
            return
        with self._changed:
            self._stand_still()

    def _stand_still(self) -> None:
        """Until it is time for the next phase, or somebody wants it."""
        end = time.monotonic() + self.pace
        while not (self._is_closing or self._inbox or self._to_end or self._phases > 0):
            if self._runs and self.num_pages:
                left = end - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)
            else:
                self._changed.wait()

    # ---- acts, in the thread and between two steps

    def add(self, prompts: list[str], params: dict[str, Any], priority: int = 0) -> list[str]:
        """Each prompt is a request. All are taken, or none. Raises InvalidRequestError."""
        self._refuse_in_challenge("its requests are what they are")
        if len(self.run.asks) + len(prompts) > MOST_ASKS:
            raise InvalidRequestError(
                f"there are {len(self.run.asks)} requests, and with {len(prompts)} more it would be more than the "
                f"{MOST_ASKS} that the page keeps. Send fewer, or clear it."
            )
        asks = []
        for number, prompt in enumerate(prompts, self._next_id):
            own_seed = {"seed": number} if params.get("seed") is None else {}
            asks.append(Ask(str(number), prompt, params | own_seed, priority, self.run.steps_done))
        for ask in asks:
            self.run.check(ask)
        self._next_id += len(asks)
        for ask in asks:
            self.run.add(ask)
        self._whole = None
        self.run.recorder.glance()
        self._tell_requests()
        self._tell_mode()
        return [ask.request_id for ask in asks]

    def abort(self, request_id: str) -> None:
        self._refuse_in_challenge("all of its requests are to be served")
        if request_id not in self.run.llm.requests:
            raise InvalidRequestError(f"request {request_id} is not there, or is done already.")
        self.run.abort(request_id)
        self._whole = None
        self.run.recorder.glance()
        self._tell_requests()
        self._tell_mode()

    def configure(self, **changes: Any) -> None:
        """The engine starts anew with other options and serves the same requests, up to the step where it is now.

        Raises ConfigurationError or InvalidRequestError, and then nothing has changed.
        """
        if self.challenge and (fixed := sorted(changes.keys() & set(self.challenge.locked))):
            raise ConfigurationError(f"{fixed[0]} is part of the challenge; change something else.")
        options, asks, num_steps = self.run.options | changes, self.run.asks, self.run.steps_done
        with self.blamed():
            new = Run(self.build, options, asks, tell=self._after_replayed_phase)
            whole = self._played_out(options, asks)
            before = self._whole or self._played_out(self.run.options, asks)
        self._compare(before, whole, list(changes))
        self._whole = whole
        self._show(new, num_steps)

    def clear(self) -> None:
        """No requests; the options stay."""
        self._begin(self.run.options, [], None)

    def take_up(self, name: str) -> None:
        """A challenge: its requests and its options."""
        if name not in self.challenges:
            raise ConfigurationError(f"there is no challenge {name!r}; there are {', '.join(self.challenges)}.")
        challenge = self.challenges[name]
        self._begin(self.run.options | dict(challenge.options), list(challenge.asks), challenge)

    def _begin(self, options: dict[str, Any], asks: list[Ask], challenge: Challenge | None) -> None:
        with self.blamed():
            new = Run(self.build, options, asks, tell=self._after_replayed_phase)
            self._whole = self._played_out(options, asks)
        self.challenge = challenge
        self._next_id = len(asks) + 1
        self._judge(self._whole.figures())
        self.feed.tell(compare=None, before=None)
        self._show(new, 0)

    def _played_out(self, options: dict[str, Any], asks: list[Ask]) -> Run:
        """These requests, served to the end by an engine that nobody sees."""
        run = Run(self.build, options, asks)
        run.go_on()
        run.close()
        return run

    def _show(self, new: Run, num_steps: int) -> None:
        """From now on `new` is the engine that is shown. It is where the last one was."""
        self.run.close()
        self.run = new
        self.feed.restart()
        with self.blamed():
            while new.steps_done < num_steps and new.has_work:
                new.step()
        if not new.trace.changes or any(ask.step == new.steps_done for ask in new.asks):  # who has come since
            new.recorder.glance()
        new.trace.changes.tell = self._after_phase  # type: ignore[attr-defined]
        self._phases, self._to_end = 0, False
        self._tell_all()

    def _after_replayed_phase(self) -> None:
        self._push()

    def _push(self) -> None:
        """The newest frame, after the source of functions that it is the first to name."""
        frame = self.run.trace[-1]
        functions = functions_of([frame])
        if not functions.keys() <= self._functions.keys():
            self._functions = self._functions | functions
            self.feed.tell(functions=self._functions)
        self.feed.push(as_tree(frame))

    def _refuse_in_challenge(self, why: str) -> None:
        if self.challenge:
            raise ConfigurationError(f"this is a challenge: {why}. Leave it first.")

    def _compare(self, old: Run, new: Run, changed: list[str]) -> None:
        figures = new.figures()
        self._judge(figures)
        frames = old.trace.steps
        self.feed.tell(
            compare={
                "changed": {name: [old.options.get(name), new.options[name]] for name in changed},
                "figures": [old.figures()._asdict(), figures._asdict()],
            },
            before={"options": shown_options(old.options), "deltas": deltas(map(as_tree, frames))},
        )

    def _judge(self, figures: Figures) -> None:
        self.missing = self.challenge.missing(figures) if self.challenge else ""
        if self.challenge and not self.missing:
            self.solved.add(self.challenge.name)

    # ---- what pages are told, beside frames

    def _tell_all(self) -> None:
        self.feed.tell(options=shown_options(self.run.options), failure="", challenges=self._told_challenges())
        self._tell_mode()
        self._tell_requests()

    def _tell_mode(self) -> None:
        with self._changed:
            if threading.current_thread() is self._thread:  # in the middle of a step nobody else may ask the engine
                self._has_work = self.run.has_work
            if not self._has_work:  # an order does not wait for what may be sent later
                self._runs, self._phases, self._to_end = False, 0, False
        self.feed.tell(mode={"runs": self._runs, "pace": self.pace, "has_work": self._has_work})

    def _tell_requests(self) -> None:
        run = self.run
        self.feed.tell(
            requests=[
                {
                    "id": ask.request_id,
                    "prompt": ask.prompt,
                    "params": dict(ask.params),
                    "step": ask.step,
                    "done": run.reasons.get(ask.request_id, "" if ask.request_id in run.llm.requests else "to come"),
                    "error": run.errors.get(ask.request_id, ""),
                }
                for ask in run.asks
            ]
        )

    def _told_challenges(self) -> dict[str, Any]:
        names = "name", "goal", "hint", "locked"
        each = [{name: getattr(c, name) for name in names} for c in self.challenges.values()]
        return {
            "here": self.challenge.name if self.challenge else "",
            "missing": self.missing,
            "all": [told | {"solved": told["name"] in self.solved} for told in each],
        }


def shown_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if isinstance(value, str | int | float | bool)}
