"""The replicas on Ray Serve: an actor each, started, watched, started anew and scaled by Ray.

    Front ── handle, naming a replica ──▶ NamedReplica (Ray's request router, in this process) ──▶ actor: Replica
      ◀──────────── queue ◀──────────── KV events ◀───────────────────────────────────────────────────┘

Ray's own way of choosing (two at random, the shorter queue) is used where no replica is named, or the named one is
gone. Ray's interface for routers is called alpha in 2.60.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.request_router import LocalityMixin, MultiplexMixin, RequestRouter
from ray.serve.schema import LoggingConfig
from ray.util.queue import Queue
from starlette.types import Scope

from minipage.engine.async_llm import AsyncLLM
from minipage.engine.kv_events import KVEventBatch
from minipage.errors import ConfigurationError, MinipageError
from minipage.serve.app import Settings
from minipage.serve.main import load_llm
from minipage.serve.replicas.front import ReplicaLost
from minipage.serve.replicas.replica import Replica, passed_on

APPLICATION = "minipage"
MOST_BATCHES = 10_000  # of KV events on their way; a replica that finds no room waits, and sends fewer and larger ones
HEALTH_CHECK_SECONDS = 2.0
RaysChoice: Any = RequestRouterConfig().get_request_router_class()


class NamedReplica(LocalityMixin, MultiplexMixin, RequestRouter):  # type: ignore[misc]
    """The replica that the call names, if it is there; then Ray's choice.

    NOTE: no FIFOMixin, which Ray's own router has: what is chosen for one call would be given to the one that waits
    longest.
    """

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        wanted = pending_request.kwargs.get("wanted") if pending_request else None
        named = [each for each in candidate_replicas if each.replica_id.unique_id == wanted]
        others = await RaysChoice.choose_replicas(self, candidate_replicas, pending_request)
        return [named, *others] if named else others


class ReplicaActor:
    """What Ray runs: an engine, and the server around it. `wanted` is for NamedReplica."""

    def __init__(self, engine: dict[str, Any], settings: Settings, queue: Queue) -> None:
        try:
            llm = load_llm(engine)
        except MinipageError as error:
            queue.put(("", error))
            raise
        assert llm.kv_events
        name = serve.get_replica_context().replica_id.unique_id
        self.replica = Replica(name, AsyncLLM(llm), llm.kv_events, settings)
        self.queue = queue
        self.telling = asyncio.ensure_future(self.tell())

    async def tell(self) -> None:
        async for batch in self.replica.events():
            await self.queue.put_async((self.replica.name, batch))

    async def answer(self, scope: Scope, body: bytes, wanted: str | None) -> AsyncGenerator[Any, None]:
        async for message in self.replica.answer(scope, body):
            yield message

    async def ask(self, question: str, wanted: str) -> tuple[str, Any]:
        answer = getattr(self.replica, question)()
        return self.replica.name, await answer if asyncio.iscoroutine(answer) else answer

    def check_health(self) -> None:
        self.replica.check_health()


@dataclass(frozen=True)
class Deployment:
    """How many replicas there are, and what each may use."""

    num_replicas: int = 2
    autoscaling_config: Mapping[str, Any] | None = None  # of Ray; in place of a fixed number
    num_threads: int | None = None  # of each, on a CPU; None: the cores are divided
    num_gpus: int = 0  # of each

    @property
    def most_replicas(self) -> int:
        return int((self.autoscaling_config or {}).get("max_replicas", self.num_replicas))

    def options(self, max_ongoing_requests: int) -> dict[str, Any]:
        """Of Ray's deployment."""
        threads = str(self.num_threads or max(1, (os.cpu_count() or 1) // self.num_replicas))
        names = "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"
        how_many: dict[str, Any] = {"num_replicas": self.num_replicas}
        if self.autoscaling_config is not None:
            how_many = {"autoscaling_config": self.read_autoscaling()}
        return how_many | {
            "max_ongoing_requests": max_ongoing_requests,
            "max_constructor_retry_count": 1,  # what fails at the start fails again
            "health_check_period_s": HEALTH_CHECK_SECONDS,
            "graceful_shutdown_timeout_s": 5.0,
            "request_router_config": RequestRouterConfig(request_router_class=NamedReplica),
            "logging_config": LoggingConfig(log_level="WARNING", enable_access_log=False),
            "ray_actor_options": {
                "num_cpus": 1, "num_gpus": self.num_gpus, "runtime_env": {"env_vars": dict.fromkeys(names, threads)},
            },
        }  # fmt: skip

    def read_autoscaling(self) -> AutoscalingConfig:
        known = set(AutoscalingConfig.model_fields)
        given = {"initial_replicas": self.num_replicas, **(self.autoscaling_config or {})}
        if unknown := sorted(given.keys() - known):
            raise ConfigurationError(f"autoscaling_config has {unknown[0]!r}, which Ray does not know.")
        try:
            return AutoscalingConfig(**given)
        except ValueError as error:
            what = " ".join(str(error).split())
            raise ConfigurationError(f"autoscaling_config makes no sense to Ray: {what}") from error


class RayReplicas:
    """Replicas of one model, until `stop`.

    Args:
        engine: options of each replica's LLM.
        log_to_driver: show what replicas log, which goes to Ray's files otherwise (/tmp/ray/session_latest/logs).

    Raises:
        MinipageError: a replica cannot be made of these options.
    """

    def __init__(
        self, engine: dict[str, Any], settings: Settings, deployment: Deployment, log_to_driver: bool = False
    ) -> None:
        most = int(engine.get("max_num_seqs", 256)) + settings.max_queued_requests
        options = deployment.options(most)  # wrong ones are refused before anything is started
        self.is_own = "RAY_ADDRESS" not in os.environ  # a cluster of this machine alone, which ends with us
        how: dict[str, Any] = {"logging_level": "WARNING", "log_to_driver": log_to_driver, "namespace": APPLICATION}
        if self.is_own:
            how |= {"address": "local", "num_cpus": deployment.most_replicas + 2, "include_dashboard": False}
        logging.getLogger("ray.serve").setLevel("WARNING")
        try:
            ray.init(**how)
            serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
            self.queue = Queue(MOST_BATCHES, actor_options={"num_cpus": 0})
            actor: Any = serve.deployment(ReplicaActor, name="Replica").options(**options)
            self.handle = serve.run(actor.bind(engine, settings, self.queue), name=APPLICATION, route_prefix=None)
        except BaseException as error:
            reason = self._reason(error)
            self.stop()
            raise reason from None

    def _reason(self, error: BaseException) -> BaseException:
        """Why nothing was started: what a replica says is better than what Ray says."""
        if isinstance(error, RuntimeError) and hasattr(self, "queue") and not self.queue.empty():
            _, said = self.queue.get()
            return said if isinstance(said, MinipageError) else error
        return error

    async def answer(self, scope: Scope, body: bytes, replica: str | None) -> AsyncGenerator[Any, None]:
        response = self.handle.options(stream=True).answer.remote(passed_on(scope), body, wanted=replica)
        try:
            async for message in response:
                yield message
        except RayActorError as error:
            raise lost(replica) from error
        finally:
            response.cancel()  # which does nothing if it is over

    async def ask(self, question: str, replica: str) -> Any:
        try:
            name, answer = await self.handle.ask.remote(question, wanted=replica)
        except RayActorError as error:
            raise lost(replica) from error
        if name != replica:
            raise lost(replica)
        return answer

    async def events(self) -> AsyncGenerator[tuple[str, KVEventBatch], None]:
        while True:
            yield await self.queue.get_async()

    def stop(self) -> None:
        """End the replicas, and with them the cluster if it is our own."""
        if not self.is_own and ray.is_initialized():
            serve.delete(APPLICATION)
            self.queue.shutdown()
        elif ray.is_initialized():
            serve.shutdown()
        ray.shutdown()


def lost(replica: str | None) -> ReplicaLost:
    return ReplicaLost(f"replica {replica or 'of this request'} was lost.")
