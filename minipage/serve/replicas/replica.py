"""One replica: a whole server (app.py) without a socket. A request comes in as a scope and a body."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from starlette.types import Message, Scope

from minipage.engine.async_llm import AsyncLLM
from minipage.engine.kv_events import KVEventBatch, KVEvents
from minipage.serve.app import Settings, make_app
from minipage.trace.watching.feed import waking

SIGN_OF_LIFE_SECONDS = 5.0
PASSED_ON = {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path"}
PASSED_ON |= {"headers", "client", "server"}  # of a scope: what can be sent to another process


class Replica:
    """An engine and its application, under a name."""

    def __init__(self, name: str, llm: AsyncLLM, kv_events: KVEvents, settings: Settings) -> None:
        self.name = name
        self.llm = llm
        self.kv_events = kv_events
        self.app = make_app(llm, replace(settings, engine=name))

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Any, None]:
        """The name, the messages of the answer, and the Tally of what was done. Closing it aborts the request."""
        yield self.name
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        own = {**scope, "app": None}
        working = asyncio.ensure_future(self._work(own, body, messages))
        try:
            while message := await messages.get():
                yield message
            await working
            if tally := own.get("minipage.tally"):
                yield tally
        finally:
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

    async def _work(self, scope: Scope, body: bytes, messages: asyncio.Queue[Message | None]) -> None:
        coming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            while not coming:
                await asyncio.Event().wait()  # until it is cancelled: whoever goes closes the answer
            return coming.pop()

        try:
            await self.app(scope, receive, messages.put)
        finally:
            messages.put_nowait(None)

    async def events(self) -> AsyncGenerator[KVEventBatch, None]:
        """What its prefix cache stores and removes; the first batch says what is there, even if that is nothing.

        From time to time an empty one says that the replica is still there.
        """
        news = asyncio.Event()
        subscriber = self.kv_events.subscribe(waking(asyncio.get_running_loop(), news))
        try:
            while True:
                news.clear()
                yield subscriber.take() or KVEventBatch(time.time(), [], subscriber.seq)
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), SIGN_OF_LIFE_SECONDS)
        finally:
            self.kv_events.leave(subscriber)

    def check_health(self) -> None:
        """Raises EngineDeadError if the engine has stopped."""
        self.llm.check_alive()

    def stats(self) -> dict[str, Any]:
        return self.llm.stats()

    async def reset_prefix_cache(self) -> None:
        await self.llm.reset_prefix_cache()

    async def abort_all(self) -> None:
        await self.llm.abort_all()

    def process_id(self) -> int:
        return os.getpid()

    def end_streams(self) -> None:
        self.app.state.live.end()


def passed_on(scope: Scope) -> Scope:
    """What a replica needs of a request; its id comes along as a header."""
    headers = [pair for pair in scope["headers"] if pair[0] != b"x-request-id"]
    headers.append((b"x-request-id", scope["minipage.request_id"].encode()))
    return {name: scope[name] for name in PASSED_ON if name in scope} | {"headers": headers}
