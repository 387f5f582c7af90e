"""The addresses of a playground: the page, the stream of frames, and the acts.

All of them are for this machine only: the server listens on 127.0.0.1, and a browser that asks under another name, or
for a page of somebody else's, is refused. Otherwise any page in the world could play along, or read the prompts.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from minipage.errors import MinipageError
from minipage.play.acts import act
from minipage.play.play_page import play_page
from minipage.play.playground import Playground
from minipage.serve.errors import ApiError
from minipage.serve.limits import read_body, unless_gone
from minipage.serve.live import check_host, check_page, send_news
from minipage.trace.watching.feed import waking

MOST_BYTES = 64 * 1024
MOST_PAGES = 16
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # A notebook on this machine shows the page in a frame; nobody else should, and have it clicked on unseen.
    "Content-Security-Policy": "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*",
}


class Pages:
    """What the addresses answer, for one playground."""

    def __init__(self, playground: Playground, subtitle: str) -> None:
        self.playground = playground
        self.document = play_page(subtitle)
        self.is_over = asyncio.Event()

    def end(self) -> None:
        self.is_over.set()

    async def page(self, request: Request) -> Response:
        check_host(request.scope, request.headers)
        return HTMLResponse(self.document, headers=HEADERS)

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        check_all(scope)
        playground, news = self.playground, asyncio.Event()
        if playground.num_pages >= MOST_PAGES:
            raise ApiError(429, f"{MOST_PAGES} pages are open already; close one.")
        viewer = playground.feed.join(waking(asyncio.get_running_loop(), news))
        playground.pages(+1)
        try:
            with suppress(asyncio.CancelledError):  # the page is closed
                await unless_gone(receive, send_news(send, viewer, news, self.is_over))
        finally:
            playground.feed.leave(viewer)
            playground.pages(-1)

    async def act(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = check_all(scope)
        if not headers.get("content-type", "").startswith("application/json"):
            raise ApiError(415, "an act is sent as application/json.")
        body = await read_body(scope, receive, MOST_BYTES)
        try:
            answer = act(self.playground, body)
            result = None if answer is None else await asyncio.wrap_future(answer)
        except MinipageError as error:
            raise ApiError(400, str(error)) from error
        await JSONResponse({"result": result})(scope, receive, send)


def check_all(scope: Scope) -> Headers:
    """Raise ApiError unless the page itself is behind a request."""
    headers = Headers(scope=scope)
    check_host(scope, headers)
    check_page(headers)
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        raise ApiError(403, "pages of others may not play here.", code="origin_not_allowed")
    return headers


class Address:
    """An address that Starlette hands its requests to as they are."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer(scope, receive, send)


async def told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


def make_app(pages: Pages) -> Starlette:
    routes = [
        Route("/", pages.page),
        Route("/live", Address(pages.stream), methods=["GET"]),
        Route("/act", Address(pages.act), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={ApiError: told})
