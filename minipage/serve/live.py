"""The memory, live: `GET /` is a page, and `GET /live` what it shows, as server-sent events.

The page itself knows nothing, and everybody may have it; it asks for the key where there is one, because browsers send
none by themselves. The stream is for those who have the key. Without a key, whoever can reach the server may look,
except pages of somebody else's that are open in the same browser: see `check_host`.
"""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import suppress
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from minipage.engine.async_llm import AsyncLLM
from minipage.serve.access import Keys
from minipage.serve.errors import ApiError
from minipage.serve.limits import unless_gone
from minipage.trace.watching.live_page import live_page
from minipage.trace.watching.watch import Watch

MOST_VIEWERS = 16
SIGN_OF_LIFE_SECONDS = 15.0
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}


class Takes(Protocol):
    def take(self) -> str | None:
        """All that is new; None if nothing is."""


class Live:
    """The page and the stream of one engine."""

    def __init__(self, llm: AsyncLLM, name: str, words: bool, keys: Keys) -> None:
        self.watch = Watch(llm, words)
        self.document = live_page(name, words)
        self.keys = keys
        self.is_over = asyncio.Event()

    async def page(self, request: Request) -> Response:
        """With status 401 it is the same page, which then asks for the key."""
        return HTMLResponse(self.document, 200 if self.keys.open_for(request.headers) else 401, HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The stream."""
        check_page(Headers(scope=scope))
        if not self.keys:
            check_host(scope, Headers(scope=scope))
        if self.watch.feed.num_viewers >= MOST_VIEWERS:
            message = f"{MOST_VIEWERS} pages are open already; close one."
            raise ApiError(429, message, code="too_many_viewers", headers={"Retry-After": "5"})
        async with self.watch.viewer() as (viewer, news):
            await unless_gone(receive, send_news(send, viewer, news, self.is_over))

    def end(self) -> None:
        """Streams have no end of their own, and a server that stops would wait for them."""
        self.is_over.set()


async def send_news(send: Send, viewer: Takes, news: asyncio.Event, is_over: asyncio.Event) -> None:
    """Whatever a viewer finds, until it is over.

    While the browser does not read, `send` waits, and newer frames take the place of older ones.
    """
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    ending = asyncio.ensure_future(is_over.wait())
    try:
        while not is_over.is_set():
            news.clear()
            text = await asyncio.to_thread(viewer.take)
            event = ": nothing new\n\n" if text is None else f"data: {text}\n\n"
            await send({"type": "http.response.body", "body": event.encode("utf-8", "replace"), "more_body": True})
            waiting = asyncio.ensure_future(news.wait())
            try:
                await asyncio.wait({waiting, ending}, timeout=SIGN_OF_LIFE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            finally:  # or nobody would ever tell it that the browser has gone
                waiting.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        ending.cancel()


def check_page(headers: Headers) -> None:
    """Raise ApiError if a browser says that another page is behind this request."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ApiError(403, "another page has asked for this; open it by itself.", code="origin_not_allowed")


def check_host(scope: Scope, headers: Headers) -> None:
    """Raise ApiError if another page may be behind this request without the browser knowing.

    One that has its own name lead to this machine (DNS rebinding) is of the same origin to the browser. But it asks
    under that name; whoever really means this machine calls it localhost, or by its number.
    """
    listens_on: Any = (scope.get("server") or ("",))[0]
    if is_loopback(listens_on) and not is_loopback(host_name(headers.get("host", ""))):
        message = "this is shown under localhost or 127.0.0.1 only; behind a proxy, start the server with --api-key."
        raise ApiError(403, message, code="host_not_allowed")


def host_name(host: str) -> str:
    """Without the port: "[::1]:8000" -> "::1"."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def is_loopback(name: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name.lower() == "localhost"
