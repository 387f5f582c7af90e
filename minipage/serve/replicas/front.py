"""What clients talk to if there are several replicas: one port, one key, one /metrics.

    client ─▶ Access ─▶ Front ── which replica? ── routing.py ◀── KV events ── replicas
                          │                                                       ▲
                          └────── the request, as it came ────────────────────────┘ each is a whole server (app.py)

The front reads a prompt only to choose; all else is the replica's business. Nothing is sent to the client before a
replica has something to say, so until then the request can be given to another one if that replica is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing
from functools import partial
from itertools import chain
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from minipage.engine.kv_events import KVEventBatch
from minipage.serve.access import Keys, Tally, log_failure, logger, path_of, tally_of
from minipage.serve.app import Settings, answering
from minipage.serve.errors import ApiError
from minipage.serve.generation import send_event
from minipage.serve.limits import RETRY_AFTER, read_body, unless_gone
from minipage.serve.metrics import EngineCollector
from minipage.serve.replicas.prompts import PromptReader
from minipage.serve.replicas.routing import Router

MOST_TRIES = 5  # of one request, at replicas that are lost before they answer
MOST_PASSED_OVER = 3
OF_EACH = "/", "/live", "/kv_events"  # addresses that make no sense without saying of which replica


class ReplicaLost(Exception):
    """A replica is gone, and with it what it was doing."""


class Replicas(Protocol):
    """Where the replicas are. on_ray.py has them on Ray; tests have them in their own process."""

    def answer(self, scope: Scope, body: bytes, replica: str | None) -> AsyncGenerator[Any, None]:
        """The name of the replica that has taken the request, then its ASGI messages, and in the end its Tally.

        replica: which should take it, if it is there; None: any. Raises ReplicaLost; closing it aborts the request.
        """

    async def ask(self, question: str, replica: str) -> Any:
        """What the method of this name returns, of one replica. Raises ReplicaLost."""

    def events(self) -> AsyncGenerator[tuple[str, KVEventBatch], None]:
        """What the prefix caches store and remove. The first batch of a replica says that it is there."""


class Front:
    """What the addresses answer, for all replicas together."""

    def __init__(self, replicas: Replicas, router: Router, prompts: PromptReader, settings: Settings) -> None:
        self.replicas = replicas
        self.router = router
        self.prompts = prompts
        self.settings = settings
        self.keys = Keys(settings.api_key)
        self.names: dict[str, None] = {}  # of the replicas that are there, in the order in which they came
        self.num_requests: Counter[str] = Counter()  # that each has, those that are lost included
        self.passed_over: Counter[str] = Counter()  # how often in a row it was chosen, and another one answered

    def app(self) -> Starlette:
        routes = [
            Route("/health", self.health),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/load", self.load),
            Route("/metrics", self.metrics),
            Route("/reset_prefix_cache", self.reset_prefix_cache, methods=["POST"]),
            Route("/replicas/{replica}/{path:path}", HandedToOne(self)),
            *[Route(path, self.of_which) for path in OF_EACH],
            Route("/{path:path}", Handed(self)),
        ]
        return answering(routes, self.keys, self.settings)

    # ---- who is there, and what they know

    async def listen(self) -> None:
        """Runs as long as the front does."""
        async for replica, batch in self.replicas.events():
            self.names[replica] = None
            self.router.tell(replica, batch.events)

    @property
    def loads(self) -> dict[str, int]:
        """How many requests each replica has that is there."""
        return {name: self.num_requests[name] for name in self.names}

    def forget(self, replica: str | None) -> None:
        if replica is not None:
            self.names.pop(replica, None)
            self.router.forget(replica)

    # ---- requests

    async def hand_on(self, scope: Scope, body: bytes, send: Send) -> None:
        """Give a request to the replica that the router chooses, and to another one if that is lost in vain."""
        beginning = await asyncio.to_thread(self.prompts.read, path_of(scope), body)
        for _ in range(MOST_TRIES):
            chosen = self.router.choose(*beginning, self.loads) if self.names else None
            try:
                return await self.relay(scope, body, send, chosen)
            except ReplicaLost as error:
                logger.warning("%s is given to another replica: %s", scope["minipage.request_id"], error)
        message = f"{MOST_TRIES} replicas were lost, one after the other, before they had answered; try again later."
        raise ApiError(503, message, code="replica_lost", headers=RETRY_AFTER)

    async def relay(self, scope: Scope, body: bytes, send: Send, chosen: str | None, only: bool = False) -> None:
        """Let one replica answer. Raises ReplicaLost if it is lost before anything was sent.

        only: nobody but the chosen one should.
        """
        client = Client(send)
        taken = chosen
        self.num_requests.update([taken] if taken else [])
        try:
            async with aclosing(self.replicas.answer(scope, body, chosen)) as messages:
                async for message in messages:
                    if isinstance(message, str):
                        if only and message != chosen:
                            raise no_such_replica(chosen, self.names)
                        taken = self.move(chosen, message)
                    elif isinstance(message, Tally):
                        vars(tally_of(scope)).update(vars(message))
                    elif message.get("status") == 503 and not only:
                        raise ReplicaLost(f"the engine of replica {taken} has stopped.")
                    else:
                        await client.tell(message)
        except ReplicaLost as error:
            self.forget(taken)
            if not client.has_begun:
                raise
            await client.tell_lost(scope, error)
        finally:
            self.num_requests.subtract([taken] if taken else [])

    def move(self, chosen: str | None, taken: str) -> str:
        """Another one than the chosen replica may have taken a request: that one is gone, or Ray does not know it yet.

        If that happens again and again it is forgotten, until it gives a sign of life.
        """
        self.passed_over[taken] = 0
        if taken == chosen:
            return taken
        self.num_requests[taken] += 1
        if chosen is not None:
            self.num_requests[chosen] -= 1
            self.passed_over[chosen] += 1
            if self.passed_over[chosen] >= MOST_PASSED_OVER:
                self.forget(chosen)
        return taken

    # ---- what concerns all of them

    async def ask_all(self, question: str) -> dict[str, Any]:
        """{replica: its answer}, of those that are there."""

        async def ask(replica: str) -> Any:
            try:
                return await self.replicas.ask(question, replica)
            except ReplicaLost:
                self.forget(replica)

        names = sorted(self.names)
        answers = await asyncio.gather(*map(ask, names))
        return {name: answer for name, answer in zip(names, answers) if name in self.names}

    async def metrics(self, request: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(Together(await self.ask_all("stats"), self.settings.served_model_name[0]))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def reset_prefix_cache(self, request: Request) -> Response:
        await self.ask_all("reset_prefix_cache")
        return Response(status_code=200)

    async def health(self, request: Request) -> Response:
        return Response(status_code=200 if self.names else 503)

    async def load(self, request: Request) -> Response:
        return JSONResponse({"server_load": self.num_requests.total(), "replicas": self.loads})

    async def of_which(self, request: Request) -> Response:
        path, names = request.url.path, ", ".join(sorted(self.names))
        message = f"each replica has its own {path}: ask for /replicas/NAME{path}. The names are {names}."
        raise ApiError(404, message, code="which_replica")


class Handed:
    """An address whose requests are handed on."""

    def __init__(self, front: Front) -> None:
        self.front = front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self.front.settings.max_body_size)
        await unless_gone(receive, self.hand_on(scope, body, send))

    async def hand_on(self, scope: Scope, body: bytes, send: Send) -> None:
        await self.front.hand_on(scope, body, send)


class HandedToOne(Handed):
    """/replicas/NAME/...: the same address, of one replica."""

    async def hand_on(self, scope: Scope, body: bytes, send: Send) -> None:
        name, path = scope["path_params"]["replica"], "/" + scope["path_params"]["path"]
        if name not in self.front.names:
            raise no_such_replica(name, self.front.names)
        own: Scope = {**scope, "path": path, "raw_path": path.encode()}
        try:
            await self.front.relay(own, body, send, name, only=True)
        except ReplicaLost as error:
            raise no_such_replica(name, self.front.names) from error


class Client:
    """Whoever gets the answer. Its head is held back until there is more than that."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message = {}
        self.has_begun = False

    async def tell(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        if not self.has_begun:
            self.has_begun = True
            await self._send(self._head)
        await self._send(message)

    async def tell_lost(self, scope: Scope, lost: ReplicaLost) -> None:
        """The answer breaks off: in a stream of events the last one says why."""
        error = ApiError(500, f"{lost} The answer is not complete; ask again.", code="replica_lost")
        log_failure(scope, error)
        if b"text/event-stream" not in dict(self._head["headers"]).get(b"content-type", b""):
            raise error  # which cuts the connection
        await send_event(self._send, json.dumps(error.body()))
        await send_event(self._send, "[DONE]")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class Together(Collector):
    """The metrics of several engines under one name each; the label `engine` says whose they are."""

    def __init__(self, stats: Mapping[str, Any], model_name: str) -> None:
        self.engines = [EngineCollector(partial(stats.__getitem__, name), model_name, name) for name in stats]

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for family in chain.from_iterable(engine.collect() for engine in self.engines):
            families.setdefault(family.name, family)
            if families[family.name] is not family:
                families[family.name].samples += family.samples
        yield from families.values()


def no_such_replica(name: str | None, names: Iterable[str]) -> ApiError:
    return ApiError(404, f"there is no replica {name!r}; there are {', '.join(sorted(names))}.", code="no_such_replica")
