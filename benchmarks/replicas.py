"""Does a router that knows prefixes help, and what does a killed replica cost? `python -m benchmarks.replicas`

    turns   the same two replicas (the shipped model, one thread each) under the same conversations, in turn by the
            prefix router and round robin: users who each ask, read, think for a moment, and ask on
    kill    one replica is killed in the middle of such a load, half of whose answers are streams, and it is counted
            what became of every request

It needs `pip install 'minipage[ray]' httpx`, starts a Ray of its own, and ends it. The time to the first token is
taken at the client; how long the replicas computed says more on a busy machine. Goals: more hits and an earlier first
token than round robin; no request lost that had not begun to answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

from benchmarks.measure import OtherPrograms, console, grid, main, needed
from minipage.engine.kv_events import KVCacheEvent
from minipage.model.checkpoint import SHIPPED_MODEL, load_model

with needed("'minipage[ray]' httpx"):
    import httpx

    from minipage.serve.app import Settings
    from minipage.serve.main import make_config, take_port
    from minipage.serve.replicas.front import Front
    from minipage.serve.replicas.main import FrontServer, with_events
    from minipage.serve.replicas.on_ray import Deployment, RayReplicas
    from minipage.serve.replicas.prompts import PromptReader
    from minipage.serve.replicas.routing import PrefixRouter, RoundRobin, Router

NUM_REPLICAS = 2
NUM_TURNS, TOKENS_OUT = 5, 24
BEGINNING, QUESTION = 160, 32  # tokens
THINKING = 0.5  # seconds, on average
VOCABULARY = 1000  # tokens to draw questions from


class Either:
    """Several routers, all of which know what the replicas tell; one at a time chooses."""

    def __init__(self, routers: Mapping[str, Router]) -> None:
        self.routers = routers
        self.current = next(iter(routers))

    def tell(self, replica: str, events: Iterable[KVCacheEvent]) -> None:
        events = list(events)
        for router in self.routers.values():
            router.tell(replica, events)

    def forget(self, replica: str) -> None:
        for router in self.routers.values():
            router.forget(replica)

    def choose(self, token_ids: Sequence[int], salt: str, loads: Mapping[str, int]) -> str | None:
        return self.routers[self.current].choose(token_ids, salt, loads)


@contextmanager
def served(router: Router) -> Iterator[tuple[str, Front]]:
    """The address of a front with two replicas, and the front."""
    settings, answers, address = Settings(served_model_name=["it"]), Event(), []
    replicas = RayReplicas(with_events({}), settings, Deployment(NUM_REPLICAS, num_threads=1))
    try:
        front = Front(replicas, router, PromptReader(load_model(SHIPPED_MODEL).tokenizer), settings)
        with take_port("127.0.0.1", 0) as sock:

            def tell(where: str) -> None:
                address.append(where)
                answers.set()

            server = FrontServer(front, make_config(front.app(), 5.0, "warning"), 5.0, tell)
            thread = Thread(target=server.run, kwargs={"sockets": [sock]})
            thread.start()
            answers.wait()
            yield address[0], front
            server.should_exit = True
            thread.join()
    finally:
        replicas.stop()


class User:
    """One who talks, turn by turn."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.text = self.words(BEGINNING)
        self.first_tokens: list[float] = []  # seconds

    def words(self, num_tokens: int) -> list[int]:
        return [self.random.randrange(1, VOCABULARY) for _ in range(num_tokens)]

    async def talk(self, client: httpx.AsyncClient) -> None:
        for _ in range(NUM_TURNS):
            await asyncio.sleep(self.random.expovariate(1 / THINKING))
            self.text += self.words(QUESTION)
            body = request(self.text, stream=True) | {"return_token_ids": True}
            begin = perf_counter()
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                first = None
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        first = first or perf_counter() - begin
                        self.text += json.loads(line[6:])["choices"][0]["token_ids"]
            self.first_tokens.append(first or float("nan"))


def request(token_ids: list[int], stream: bool, num_tokens: int = TOKENS_OUT) -> dict[str, Any]:
    return {"prompt": token_ids, "max_tokens": num_tokens, "ignore_eos": True, "temperature": 0, "stream": stream}


def counted(metrics: str, name: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(name + "{"))


async def processor_seconds(front: Front) -> float:
    """That the replicas have used so far: it says what was saved, however busy the machine is with other things."""
    pids = (await front.ask_all("process_id")).values()
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


async def turns(url: str, front: Front, num_users: int, seed: int) -> dict[str, Any]:
    """The hit rate, the seconds to each first token, and the processor time."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        await client.post("/reset_prefix_cache")
        before, used = (await client.get("/metrics")).text, await processor_seconds(front)
        users = [User(1000 * seed + i) for i in range(num_users)]
        await asyncio.gather(*(user.talk(client) for user in users))
        after, used = (await client.get("/metrics")).text, await processor_seconds(front) - used
    hits, queries = (
        counted(after, f"vllm:prefix_cache_{what}_total") - counted(before, f"vllm:prefix_cache_{what}_total")
        for what in ("hits", "queries")
    )
    times = [each for user in users for each in user.first_tokens]
    return {"hit_rate": hits / queries, "first_tokens": times, "processor": used}


async def killed(url: str, front: Front, num_requests: int) -> Counter[str]:
    """What became of requests while one of the replicas was killed."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        begun = set()

        async def ask(number: int) -> str:
            body, text = request(User(number).text, stream=number % 2 == 0, num_tokens=200), ""
            await asyncio.sleep(0.03 * number)
            try:
                async with client.stream("POST", "/v1/completions", json=body) as answer:
                    async for piece in answer.aiter_text():
                        text += piece
                        begun.add(number)
            except httpx.HTTPError as error:
                return f"lost: {type(error).__name__}"
            if "replica_lost" in text:
                return "streams that had begun: a named error"
            return "answered" if answer.status_code == 200 else f"lost: status {answer.status_code}"

        asking = [asyncio.ensure_future(ask(number)) for number in range(num_requests)]
        while len(begun) < num_requests // 4:
            await asyncio.sleep(0.01)
        os.kill(await front.replicas.ask("process_id", next(iter(front.loads))), signal.SIGKILL)
        return Counter(await asyncio.gather(*asking))


def run(quick: bool) -> dict[str, Any]:
    rounds, num_users, num_requests = (1, 5, 16) if quick else (4, 6, 32)
    routers = {"prefix": PrefixRouter(), "round robin": RoundRobin()}
    either, others = Either(routers), OtherPrograms()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in routers}
    with served(either) as (url, front):
        asyncio.run(turns(url, front, 2, seed=99))  # warm up
        for i in range(rounds):
            for name in list(routers)[:: 1 if i % 2 == 0 else -1]:  # nobody is always the first
                either.current = name
                found[name].append(asyncio.run(turns(url, front, num_users, seed=i)))
        show(found, num_users)
        either.current = "prefix"
        ends = asyncio.run(killed(url, front, num_requests))
    console.print(f"One of {NUM_REPLICAS} replicas was killed while {num_requests} requests were being answered:")
    for what, number in sorted(ends.items()):
        console.print(f"  {number:3} {what}")
    console.print(f"Meanwhile other programs took {others} of the processors.")
    return {"turns": found, "killed": dict(ends), "others": str(others)}


def show(found: dict[str, list[dict[str, Any]]], num_users: int) -> None:
    title = (
        f"{num_users} users, {NUM_TURNS} turns each, {NUM_REPLICAS} replicas, {len(next(iter(found.values())))} rounds"
    )
    table = grid(title, ("", "tokens found", "first token, ms", "90 %", "processor, s"))
    for name, each in found.items():
        times = sorted(time for one in each for time in one["first_tokens"])
        tenths = statistics.quantiles(times, n=10)
        rate, used = (statistics.mean(one[what] for one in each) for what in ("hit_rate", "processor"))
        milliseconds = f"{1000 * statistics.median(times):.0f}", f"{1000 * tenths[-1]:.0f}"
        table.add_row(name, f"{rate:.1%}", *milliseconds, f"{used:.2f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main("replicas", "A router that knows prefixes beside round robin, and a replica that is killed.", run))
