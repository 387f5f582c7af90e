"""What nobody may do to the others: a queue without end, huge or slow bodies, connections that say nothing."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, TypeVar

import h11
from starlette.types import Receive, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from minipage.errors import count
from minipage.serve.errors import ApiError

HEADER_SECONDS = 10.0  # for all the headers of a request
BODY_SECONDS = 30.0  # for its body
WRITE_SECONDS = 60.0  # that a client may leave what was sent to it unread
MOST_UNREAD = 128 * 1024  # bytes
MOST_CONNECTIONS = 1024
FILES_FOR_OTHERS = 100
RETRY_AFTER = {"Retry-After": "1"}

Result = TypeVar("Result")


class Queue:
    """Counts the prompts that are served or wait, and refuses more than there is room for."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.num_prompts = 0

    @contextmanager
    def place_for(self, num_prompts: int) -> Iterator[None]:
        if num_prompts > self.most:
            raise ApiError(413, f"{num_prompts} prompts in one request; there is room for {self.most}. Send fewer.")
        if self.num_prompts + num_prompts > self.most:
            raise ApiError(429, "the queue is full; try again later.", code="queue_full", headers=RETRY_AFTER)
        self.num_prompts += num_prompts
        try:
            yield
        finally:
            self.num_prompts -= num_prompts


async def read_body(scope: Scope, receive: Receive, most: int) -> bytes:
    """All of it, if it is not longer than `most` bytes and does not take too long."""
    too_long = ApiError(413, f"the body is longer than {count(most, 'byte')}.", code="body_too_large")
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while (message := await receive())["type"] == "http.request":
                body += message.get("body", b"")
                if len(body) > most:
                    raise too_long
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} seconds.") from None
    raise asyncio.CancelledError  # the client has gone


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of some work; it is cancelled when the client goes away."""

    async def client_goes() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, going = asyncio.ensure_future(work), asyncio.ensure_future(client_goes())
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in working, going:
            task.cancel()
        await asyncio.wait({working, going})  # until the request is aborted
    return working.result()


class Connection(H11Protocol):
    """uvicorn's HTTP connection, with a deadline for those who connect and then say nothing, or half of something.

    When there are too many, the one that has owed us a whole request for longest has to go.
    """

    deadline: asyncio.TimerHandle | None = None
    is_deaf = False  # all is said, and what the client is still sending is dropped

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Patient(transport, self))  # type: ignore[arg-type]
        self.silent: dict[Connection, None] = vars(self.server_state).setdefault("silent", {})  # longest first
        bound_what_is_unread(transport)
        if len(self.connections) > most_connections():
            longest = next(iter(self.silent), self)
            self.silent.pop(longest, None)  # at once: it is lost only when the event loop comes to it
            longest.transport.abort()
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self.is_deaf:
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:  # headers, or a refused body's rest
            self._expect_headers()
            return
        self._clear_deadline()
        if self.conn.their_state is not h11.SEND_BODY:  # the request is whole
            self.silent.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self.silent[self] = None
            if self.conn.trailing_data[0]:  # the next request has begun to come
                self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self.silent.pop(self, None)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """In place of uvicorn's: with the status that the HTTP library finds right, 431 for a flood of headers."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        body = ApiError(status, f"{msg} {error}".strip()).response()
        headers = [*body.raw_headers, (b"connection", b"close")]
        response = h11.Response(status_code=status, headers=headers, reason=b"")
        for event in response, h11.Data(data=bytes(body.body)), h11.EndOfMessage():
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def turn_deaf(self) -> None:
        self.is_deaf = True
        if self.transport.can_write_eof():
            with suppress(OSError):  # the client has gone
                self.transport.write_eof()
        self._expect_headers()  # which are not to come, but the deadline is the same

    def _expect_headers(self) -> None:
        self.silent[self] = None
        if self.deadline is None:  # it is for all of the headers, not for each byte
            self.deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _clear_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class Patient:
    """A transport, except that it is not closed under the hands of a client that is still sending a body.

    Such a client would be told by the system that nobody listens, and most give up then without reading the answer.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport = transport
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        connection = self._connection
        if connection.conn.their_state is h11.SEND_BODY and not connection.is_deaf:
            connection.turn_deaf()
        else:
            self._transport.close()


def close_silent(server_state: ServerState) -> None:
    """Close the connections that have owed us a whole request until now."""
    silent: dict[Connection, None] = vars(server_state).get("silent", {})
    for connection in list(silent):
        connection.transport.abort()


def limit_greetings(loop: Any) -> None:
    """With TLS, client and server greet each other before there is a Connection. Python gives a minute for that, and
    uvicorn has no option for it."""
    loop.create_server = partial(loop.create_server, ssl_handshake_timeout=HEADER_SECONDS)


@cache
def most_connections() -> int:
    """Each takes a file of the process, of which the system allows a number."""
    try:
        import resource
    except ImportError:  # Windows, which has enough
        return MOST_CONNECTIONS
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MOST_CONNECTIONS, max(1, allowed - FILES_FOR_OTHERS)) if allowed > 0 else MOST_CONNECTIONS


def bound_what_is_unread(transport: asyncio.Transport) -> None:
    """The system keeps no more than this for a client that does not read, which is megabytes by default, and, where it
    knows how, disconnects it after a while."""
    sock = transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MOST_UNREAD)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_SECONDS * 1000))
