"""`GET /kv_events`: what the prefix cache stores and removes, as server-sent events, for routers.

Each event is a batch (engine/kv_events.py). The first one says all that is there; `?after=SEQ` goes on after a batch
that the reader has already. Token ids are texts: so who may look is decided as for the live page.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from minipage.engine.kv_events import KVEvents, Subscriber
from minipage.serve.access import Keys
from minipage.serve.errors import ApiError
from minipage.serve.limits import unless_gone
from minipage.serve.live import MOST_VIEWERS, check_host, check_page, send_news
from minipage.trace.watching.feed import waking

HOW = """start the server with --enable-prefix-caching --kv-events-config '{"enable_kv_cache_events": true}'."""


@dataclass
class Reader:
    """A subscriber whose batches are texts."""

    subscriber: Subscriber

    def take(self) -> str | None:
        batch = self.subscriber.take()
        return None if batch is None else json.dumps(batch.as_json(), separators=(",", ":"))


class KVStream:
    """The events of one engine, for several readers at once."""

    def __init__(self, events: KVEvents | None, keys: Keys, is_over: asyncio.Event) -> None:
        self.events = events
        self.keys = keys
        self.is_over = is_over
        self.num_readers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_page(Headers(scope=scope))
        if not self.keys:
            check_host(scope, Headers(scope=scope))
        if self.events is None:
            raise ApiError(404, f"there are no KV events here: {HOW}", code="no_kv_events")
        if self.num_readers >= MOST_VIEWERS:
            raise ApiError(429, f"{MOST_VIEWERS} read the KV events already.", code="too_many_viewers")
        after = read_number(QueryParams(scope["query_string"]).get("after"))
        news = asyncio.Event()
        subscriber = self.events.subscribe(waking(asyncio.get_running_loop(), news), after)
        self.num_readers += 1
        try:
            await unless_gone(receive, send_news(send, Reader(subscriber), news, self.is_over))
        finally:
            self.num_readers -= 1
            self.events.leave(subscriber)


def read_number(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdecimal():
        raise ApiError(400, f"after is {text[:40]!r}; it must be the seq of a batch.", "after")
    return int(text[:20])
