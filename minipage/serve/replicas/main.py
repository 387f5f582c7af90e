"""From options to replicas and their front, and to their end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import uvicorn

from minipage.errors import ConfigurationError, require_positive, shown
from minipage.model.checkpoint import SHIPPED_MODEL, load_model
from minipage.sampling import is_whole
from minipage.serve.app import Settings
from minipage.serve.main import Server, make_config, start_log, take_port
from minipage.serve.replicas.front import Front
from minipage.serve.replicas.prompts import PromptReader
from minipage.serve.replicas.routing import LeftToRay, PrefixRouter, RoundRobin, Router

ROUTERS = "prefix", "ray", "round-robin"
LOAD_LIMIT = 8
LOOK_SECONDS = 0.05  # between two looks whether a replica has said that it is there


class FrontServer(Server):
    """The server of a front, which listens to the replicas meanwhile."""

    def __init__(self, front: Front, config: uvicorn.Config, drain_timeout: float, tell: Callable[[str], object]):
        def end_streams() -> None:
            self.beside(front.ask_all("end_streams"))

        def abort_all() -> None:
            self.beside(front.ask_all("abort_all"))

        super().__init__(config, end_streams, abort_all, drain_timeout, tell)
        self.front = front
        self.tasks: set[asyncio.Future[Any]] = set()

    def beside(self, work: Coroutine[Any, Any, Any]) -> None:
        self.tasks.add(asyncio.ensure_future(work))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.beside(self.front.listen())
        while not self.front.names:
            await asyncio.sleep(LOOK_SECONDS)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for task in self.tasks:
            task.cancel()


def serve_replicas(
    engine: dict[str, Any],
    settings: Settings,
    *,
    data_parallel_size: int = 2,
    router: str = "prefix",
    router_load_limit: int | None = None,
    autoscaling_config: dict[str, Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    log_level: str = "info",
    drain_timeout: float = 30.0,
    tell: Callable[[str], object] = lambda where: None,
    **uvicorn_options: Any,
) -> None:
    """Serve a model from several replicas until SIGTERM or Ctrl-C.

    Args:
        engine: options of each replica's LLM.
        data_parallel_size: replicas; with `autoscaling_config`, those at the beginning.
        router: who gets a request: "prefix", "ray" or "round-robin"; see routing.py.
        router_load_limit: PrefixRouter's `most_ahead`.
        autoscaling_config: of Ray Serve, such as {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}.

    Raises:
        ConfigurationError: an option makes no sense, or Ray is not installed.
        OSError: the port cannot be had.
    """
    require_positive(data_parallel_size=data_parallel_size)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigurationError("torchrun starts the ranks of one engine; start several replicas without it.")
    own_router = make_router(router, router_load_limit)
    try:
        from minipage.serve.replicas.on_ray import Deployment, RayReplicas
    except ImportError as error:
        message = f"{error}. --data-parallel-size needs Ray Serve: pip install 'minipage[ray]'."
        raise ConfigurationError(message) from error
    start_log(log_level)
    engine = with_events(engine)
    num_gpus = int(engine.get("tensor_parallel_size", 1)) if engine.get("device") == "cuda" else 0
    deployment = Deployment(data_parallel_size, autoscaling_config, num_gpus=num_gpus)
    model = {name: engine[name] for name in ("load_format", "hf_overrides") if name in engine}
    tokenizer = load_model(engine.get("model", SHIPPED_MODEL), **model).tokenizer
    with take_port(host, port) as sock:
        replicas = RayReplicas(engine, settings, deployment, log_to_driver=log_level == "debug")
        try:
            front = Front(replicas, own_router, PromptReader(tokenizer, settings.chat_template), settings)
            config = make_config(front.app(), drain_timeout, log_level, **uvicorn_options)
            FrontServer(front, config, drain_timeout, tell).run(sockets=[sock])
        finally:
            replicas.stop()


def make_router(name: str, load_limit: int | None) -> Router:
    if name not in ROUTERS:
        raise ConfigurationError(f"router is {shown(name)}; it must be one of {', '.join(ROUTERS)}.")
    if load_limit is not None and name != "prefix":
        raise ConfigurationError("router_load_limit is for router='prefix'; leave it out.")
    if load_limit is not None and not (is_whole(load_limit) and load_limit >= 0):
        raise ConfigurationError(f"router_load_limit is {shown(load_limit)}; it must be a whole number of at least 0.")
    if name == "prefix":
        return PrefixRouter(LOAD_LIMIT if load_limit is None else load_limit)
    return LeftToRay() if name == "ray" else RoundRobin()


def with_events(engine: dict[str, Any]) -> dict[str, Any]:
    """The options of a replica: its prefix cache is on, and says what it does."""
    config = {**(engine.get("kv_events_config") or {}), "enable_kv_cache_events": True}
    return engine | {"enable_prefix_caching": True, "kv_events_config": config}
