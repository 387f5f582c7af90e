"""What passes between the engine's thread and those who wait for it: newest outputs, and answers to questions."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from minipage.engine.request import RequestOutput

Result = TypeVar("Result")


class Answer(Future[Result], Generic[Result]):
    """What the engine's thread will answer: `await` it in a task, call `result()` in a thread, or leave it."""

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.shield(asyncio.wrap_future(self)).__await__()  # who stops waiting takes no order back


class Mailbox:
    """Where the engine's thread leaves what is new of one request, for the task or thread that reads it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self.request_id: str | None = None  # until the engine has taken the request
        self.loop = loop  # the reader's; None: it is a thread
        self.arrived: Any = threading.Event() if loop is None else asyncio.Event()
        self.is_over = False  # its reader has had the last of it, or has gone
        self._newest: deque[RequestOutput | Exception] = deque(maxlen=1)  # which drops what nobody has read

    def put(self, news: RequestOutput | Exception) -> None:
        self._newest.append(news)

    def take(self) -> RequestOutput | None:
        """The newest output, if there is one that was not taken yet; raises the error, if that is what has come."""
        self.arrived.clear()
        if not self._newest:
            return None
        news = self._newest.popleft()
        self.is_over = isinstance(news, Exception) or news.finished
        if isinstance(news, Exception):
            raise news
        return news


def wake(mailboxes: list[Mailbox]) -> None:
    for mailbox in mailboxes:
        mailbox.arrived.set()


def reply(answer: Answer[Result], question: Callable[[], Result]) -> None:
    if not answer.set_running_or_notify_cancel():  # whoever has asked wants no answer any more
        return
    try:
        answer.set_result(question())
    except BaseException as error:  # SystemExit, too, is for whoever has asked
        answer.set_exception(error)
