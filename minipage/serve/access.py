"""Before and after each request: its id, the key, what went wrong, and a line of log. Never a prompt, never a text."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minipage.serve.errors import ApiError, as_api_error

logger = logging.getLogger("minipage.serve")

OPEN = {"/", "/health", "/ping", "/version", "/metrics", "/load"}  # to everybody, key or not; they tell nobody's texts
QUIET = OPEN | {"/v1/models"}  # asked again and again, and logged only with --log-level debug
GOOD_ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)


@dataclass
class Tally:
    """What the log says of one request."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    first_token_seconds: float | None = None
    finish_reason: str | None = None
    refused: str = ""  # which field is to blame, or how the error is called; not the sentence, which may quote a prompt

    def __str__(self) -> str:
        if not self.num_prompt_tokens:
            return f" ({self.refused})" if self.refused else ""
        first = "" if self.first_token_seconds is None else f", first after {self.first_token_seconds:.3f} s"
        return (
            f", {self.num_prompt_tokens} prompt tokens ({self.num_cached_tokens} cached), "
            f"{self.num_generated_tokens} generated{first}, {self.finish_reason or 'not finished'}"
        )


class Keys:
    """The keys of which a client has to send one; without any, everybody may come in."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self.digests = [digest(key.encode("utf-8", "surrogateescape")) for key in api_keys]

    def __bool__(self) -> bool:
        return bool(self.digests)

    def open_for(self, headers: Headers) -> bool:
        """Whether a request may come in. Each key takes the same time to compare, right or wrong."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sent = digest(given.strip().encode("latin-1"))  # as which Starlette has read its bytes
        matches = [hmac.compare_digest(sent, known) for known in self.digests]
        return not self.digests or (scheme.lower() == "bearer" and any(matches))


class Access:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, keys: Keys, allowed_origins: Sequence[str] = ()) -> None:
        self.app = app
        self.keys = keys
        self.allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, begin = Headers(scope=scope), time.perf_counter()
        request_id, tally = headers.get("x-request-id", ""), Tally()
        if not GOOD_ID.fullmatch(request_id):
            request_id = uuid4().hex
        scope["minipage.request_id"], scope["minipage.tally"] = request_id, tally
        status: int | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        path = path_of(scope)
        try:
            if path not in OPEN:
                self.check_key(headers)
                self.check_origin(scope["method"], headers)
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:  # the client has gone, or the server is being stopped
            pass
        except Exception as error:
            log_failure(scope, error)
            if status is None:
                answer = as_api_error(error)
                tally.refused = answer.code or ""
                await answer.response()(scope, receive, send_and_note)
        finally:
            level = logging.DEBUG if path in QUIET else logging.INFO
            took = time.perf_counter() - begin
            asked = quote(path, safe="/:@")  # a path may have line breaks, and must not write lines of its own
            shown = status or "gone"
            logger.log(level, "%s %s %s %s%s, %.3f s", request_id, scope["method"], asked, shown, tally, took)

    def check_key(self, headers: Headers) -> None:
        """Raise ApiError unless one of the keys is given."""
        if not self.keys.open_for(headers):
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`."
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def check_origin(self, method: str, headers: Headers) -> None:
        """Any page in a browser can send requests here, even if it may not read the answers; most should not."""
        origin = headers.get("origin")
        if method == "GET" or origin is None or {"*", origin} & {*self.allowed_origins}:
            return
        if origin.partition("://")[2] != headers.get("host"):
            message = f"pages of {origin} may not ask here: start the server with --allowed-origins {origin}."
            raise ApiError(403, message, code="origin_not_allowed")


def path_of(scope: Scope) -> str:
    """Of an address here, wherever a proxy has put it."""
    return str(scope["path"].removeprefix(scope.get("root_path", "")))


def digest(key: bytes) -> bytes:
    """Of one length, whatever the key's: so a comparison says nothing of that either."""
    return sha256(key).digest()


def log_failure(scope: Scope, error: Exception) -> None:
    """What is not the client's fault. Where an ApiError was raised says nothing; where any other was, does."""
    if as_api_error(error).status == 500:
        trace = None if isinstance(error, ApiError) else error
        logger.error("%s failed: %s", scope["minipage.request_id"], error, exc_info=trace)


def tally_of(scope: Scope) -> Any:
    return scope["minipage.tally"]
