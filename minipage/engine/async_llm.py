"""`AsyncLLM`: one engine for any number of asyncio tasks and threads at once. It has the face of vLLM's class.

    tasks, threads ── orders: add, abort ──▶ inbox ─▶ [ the engine's own thread: take the orders, step, tell ]
          ▲                                                                │
          └────────────── mailbox: the newest output ◀────────────────────┘

Nobody else calls the engine, so nobody waits for a step: an order is put into the inbox, and the thread takes all of
them before its next step. It sleeps while there is nothing to do. A mailbox holds one output, the newest, which says
all that the ones before it said: however slowly it is read, memory does not grow.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from minipage.engine.engine import Engine
from minipage.engine.llm import LLM
from minipage.engine.mailbox import Answer, Mailbox, Result, reply, wake
from minipage.engine.prompts import Prompt
from minipage.engine.request import RequestOutput
from minipage.errors import ConfigurationError, EngineDeadError, RequestError
from minipage.model.checkpoint import SHIPPED_MODEL
from minipage.sampling import SamplingParams

MOST_FAILURES = 5  # steps in a row that may raise before the engine is given up


class AsyncLLM:
    """Serves any number of asyncio tasks and threads from one engine, which a thread of its own steps.

        async with AsyncLLM() as llm:
            async for output in llm.generate("To be, or", SamplingParams(max_tokens=40)):
                print(output.outputs[0].text)

    A step that raises ends the requests that were being computed, each with a RequestError; the engine goes on. When it
    cannot go on, everybody gets an EngineDeadError, and so does at once whoever comes later.

    Args:
        model: as LLM takes it, or an engine that is ready. An engine may still be used by itself meanwhile.
        options: those of LLM.
    """

    def __init__(self, model: str | Path | Engine = SHIPPED_MODEL, **options: Any) -> None:
        if isinstance(model, Engine) and options:
            raise ConfigurationError(
                f"{', '.join(options)} would have no effect on an engine that is ready: leave out."
            )
        self.engine = model if isinstance(model, Engine) else LLM(model, **options)
        self._changed = threading.Condition()  # guards all of these
        self._inbox: list[Callable[[], None]] = []
        self._open: set[Mailbox] = set()  # those whose last news have not been put in yet
        self._dead: str | None = None  # why nobody is served any more
        self._is_stopping = False
        self._mailboxes: dict[str, Mailbox] = {}  # by request id; the thread's own, like what follows
        self._num_failures = 0  # steps in a row that raised
        self._thread = threading.Thread(target=self._run, name="minipage engine", daemon=True)
        self._thread.start()
        atexit.register(self.shutdown)  # a thread that computes should not be cut off

    # ---- what tasks and threads call

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield what is known of a request whenever there is news, and in the end all of it.

        Whoever reads slowly gets the newest output, and never those in between. Cancelling the task or closing the
        iterator aborts the request: its blocks are free before the next step.

        Raises:
            InvalidRequestError: it cannot be served.
            RequestError: a step that computed it failed.
            EngineDeadError: the engine has stopped.
        """
        self.check_alive()
        prompt = await asyncio.to_thread(self.engine.read_prompt, prompt, params)  # may take its time
        mailbox = Mailbox(asyncio.get_running_loop())
        try:
            self._submit(mailbox, prompt, params, request_id, priority, cache_salt)
            while not mailbox.is_over:
                await mailbox.arrived.wait()
                if output := mailbox.take():
                    yield output
        finally:
            self._leave(mailbox)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Generator[RequestOutput, None, None]:
        """Like `generate`, for a thread without an event loop."""
        self.check_alive()
        mailbox = Mailbox(None)
        try:
            prompt = self.engine.read_prompt(prompt, params)
            self._submit(mailbox, prompt, params, request_id, priority, cache_salt)
            while not mailbox.is_over:
                mailbox.arrived.wait()
                if output := mailbox.take():
                    yield output
        finally:
            self._leave(mailbox)

    def abort(self, request_id: str | Iterable[str]) -> Answer[bool]:
        """Stop a request, or several; readers get what there is, with finish_reason "abort". False: there are none.

        The answer may be awaited, or left.
        """
        return self._ask(lambda: self.engine.abort(request_id))

    def reset_prefix_cache(self) -> Answer[None]:
        """Forget all prefixes. The answer may be awaited, or left."""
        return self._ask(self.engine.reset_prefix_cache)

    def between_steps(self, call: Callable[[], Result]) -> Answer[Result]:
        """Let the engine's thread call something before its next step. The answer may be awaited, or left."""

        def alone() -> Result:
            with self.engine._changes.lock:  # somebody may use the engine by itself, too
                return call()

        return self._ask(alone)

    def stats(self) -> dict[str, Any]:
        """The numbers of /metrics; see LLM.stats."""
        return self.engine.stats()

    @property
    def num_unfinished_requests(self) -> int:
        return len(self._open)

    @property
    def is_alive(self) -> bool:
        return self._dead is None and self._thread.is_alive()

    def check_alive(self) -> None:
        """Raise EngineDeadError if the engine has stopped."""
        if self._dead is not None:
            raise EngineDeadError(self._dead)
        if not self._thread.is_alive():
            raise EngineDeadError(
                "the engine's thread has not come along into this forked process; make an engine here."
            )

    def abort_all(self) -> Answer[None]:
        """Stop every request; each reader gets what there is. The answer may be awaited, or left."""
        return self._ask(self._abort_all)

    def shutdown(self, timeout: float | None = 0) -> None:
        """Take no more requests, let those that are here finish, and abort what is left after `timeout` seconds.

        None: let all of them finish. A task calls this with `asyncio.to_thread`, or with 0.
        """
        with self._changed:
            self._dead = self._dead or "the engine was shut down."
            self._changed.wait_for(lambda: not (self._open and self._thread.is_alive()), timeout)
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.shutdown)

    def __enter__(self) -> AsyncLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.shutdown)

    # ---- orders, from any thread

    def _submit(self, mailbox: Mailbox, *request: Any) -> None:
        with self._changed:
            self.check_alive()
            self._open.add(mailbox)
            self._inbox.append(lambda: self._add(mailbox, *request))
            self._changed.notify_all()

    def _leave(self, mailbox: Mailbox) -> None:
        """The reader goes; if its request is not over, it is aborted."""
        mailbox.is_over = True
        with self._changed:
            if mailbox in self._open:
                self._inbox.append(lambda: self._drop(mailbox))
                self._changed.notify_all()

    def _ask(self, question: Callable[[], Result]) -> Answer[Result]:
        """Let the engine's thread call something before its next step."""
        answer: Answer[Result] = Answer()
        with self._changed:
            if not (self._open and self._thread.is_alive()):  # as long as somebody is served, it answers
                self.check_alive()
            self._inbox.append(lambda: reply(answer, question))
            self._changed.notify_all()
        return answer

    # ---- the engine's thread

    def _run(self) -> None:
        try:
            while self._take_orders():
                self._step()
            self._abort_all()
        except BaseException as error:
            self._die(error)
        finally:
            self._die(None)

    def _take_orders(self) -> bool:
        """Sleep until there is something to do, and follow the orders that have come; False: it is time to stop."""
        is_busy = self.engine.has_unfinished_requests()
        with self._changed:
            self._changed.wait_for(lambda: is_busy or self._inbox or self._is_stopping)
            orders, self._inbox = self._inbox, []
        for order in orders:
            order()
        return not self._is_stopping

    def _add(self, mailbox: Mailbox, *request: Any) -> None:
        """request: what `add_request` takes."""
        if mailbox.is_over:  # its reader has gone already
            return
        try:
            with self.engine._changes.lock:
                self._put(self.engine._take_news())  # an id is free again when its request was aborted, told or not
                request_id = self.engine.add_request(*request)
        except Exception as error:
            self._tell([(mailbox, error)])
        else:
            mailbox.request_id = request_id
            self._mailboxes[request_id] = mailbox

    def _drop(self, mailbox: Mailbox) -> None:
        """The reader has gone. A part that raises now is nobody else's affair: the next step ends the request."""
        if self._close(mailbox) and (request := self.engine.requests.get(mailbox.request_id or "")):
            with suppress(Exception):
                self.engine._withdraw([request])

    def _step(self) -> None:
        try:
            outputs = self.engine.step()
        except EngineDeadError:
            raise
        except Exception as error:  # the engine is whole again; see recovery.py
            self._num_failures += 1
            if self._num_failures >= MOST_FAILURES:
                raise
            self._end_failed(error)
        else:
            if self._put(outputs):  # and not a step that had nothing to compute
                self._num_failures = 0

    def _end_failed(self, error: Exception) -> None:
        """A step has raised: whoever had begun to be computed is told, and the others are served as if nothing was."""
        here = {name: self.engine.requests[name] for name in self._mailboxes if name in self.engine.requests}
        begun = [name for name, request in here.items() if request.metrics.first_scheduled_time is not None]
        for request_id in begun or here:
            try:
                self.engine.abort(request_id, "error")
            except Exception:  # once more; so this request goes on, too, from the tokens that it has
                continue
            failure = RequestError(f"a step that computed this request failed: {sentence(error)}")
            failure.__cause__ = error
            self._tell([(self._mailboxes[request_id], failure)])

    def _abort_all(self) -> None:
        for request_id in list(self._mailboxes):
            self.engine.abort(request_id)
        self._step()  # which tells them

    def _put(self, outputs: Sequence[RequestOutput]) -> bool:
        """Put outputs into the mailboxes of their requests; returns whether there is any."""
        news = [(self._mailboxes[o.request_id], o) for o in outputs if o.request_id in self._mailboxes]
        self._tell(news)
        return bool(news)

    def _tell(self, news: Sequence[tuple[Mailbox, RequestOutput | Exception]]) -> None:
        """Put news into mailboxes, and wake their readers: those of one event loop by one call."""
        arrived: dict[asyncio.AbstractEventLoop, list[Mailbox]] = {}
        for mailbox, what in news:
            mailbox.put(what)
            if isinstance(what, Exception) or what.finished:
                self._close(mailbox)
            if mailbox.loop is None:
                mailbox.arrived.set()
            else:
                arrived.setdefault(mailbox.loop, []).append(mailbox)
        for loop, mailboxes in arrived.items():
            try:
                loop.call_soon_threadsafe(wake, mailboxes)
            except RuntimeError:  # the loop is closed, with tasks that nobody has cancelled
                for mailbox in mailboxes:
                    self._drop(mailbox)

    def _close(self, mailbox: Mailbox) -> bool:
        """Nothing more will be put into it; returns whether the engine knows its request."""
        with self._changed:
            self._open.discard(mailbox)
            self._changed.notify_all()
        request_id = mailbox.request_id or ""
        is_known = self._mailboxes.get(request_id) is mailbox  # not another's, of the same id
        if is_known:
            del self._mailboxes[request_id]
        return is_known

    def _die(self, error: BaseException | None) -> None:
        """Nobody is served any more: everybody is told, once."""
        with self._changed:
            if error is not None:
                self._dead = f"the engine has stopped, because a step failed: {sentence(error)}"
            self._dead = self._dead or "the engine was shut down."
            left = list(self._open)
        for name in list(self._mailboxes):
            with suppress(BaseException):  # of an engine that is broken, what blocks can be had
                self.engine.abort(name, "error")
        kind = type(error) if isinstance(error, EngineDeadError) else EngineDeadError
        self._tell([(mailbox, kind(self._dead)) for mailbox in left])
        while self._inbox:  # and by now nobody puts anything in
            with suppress(Exception):
                self._inbox.pop(0)()


def sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
