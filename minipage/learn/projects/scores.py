"""The benchmarks: each runs a learner's module on three workloads and returns a score for each. More is better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from minipage.learn.projects.server import BASE, Server
from minipage.learn.projects.workloads import jobs, prefixes
from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.scheduling import Admission, Scheduler, SequenceGroup
from minipage.scheduling.chunks import blocks_for

Scores = dict[str, float]


def share(parts: int, whole: int) -> float:
    return 100 * parts / whole


def deadline(own: ModuleType) -> Scores:
    loads = {"steady": jobs(1, 120, 36, (20, 300), (10, 60)), "bursts": jobs(2, 120, 75, (20, 200), (10, 60), burst=12)}
    loads["long prompts"] = jobs(3, 80, 150, (20, 1200), (10, 30))
    scores = {}
    for name, load in loads.items():
        places: dict[str, Any] = {}
        server = Server(
            200, policy=lambda group, places=places: (places[group.group_id], group.arrival), max_num_seqs=16
        )
        add = server.add

        def placed(job: Any, server: Server = server, add: Any = add, places: dict[str, Any] = places) -> None:
            places[job.name] = own.place(job, server.now)
            add(job)

        server.add = placed  # type: ignore[method-assign]
        server.run(load)
        scores[name] = share(sum(job.times[0] <= job.deadline for job in load), len(load))
    return scores


class ChoosingPool(BlockPool):
    """A pool whose next block is chosen by somebody else."""

    eviction: Any
    cache: PrefixCache

    def allocate_many(self, count: int) -> list[int]:
        taken = []
        for _ in range(count):
            free = self.free_queue
            block = self.eviction.choose(list(free), [each for each in free if each in self.cache])
            self.revive(block)  # raises unless it is free
            if block in self.cache:
                self.eviction.evicted(block)
            self.on_evict(block)
            taken.append(block)
        return taken


def eviction(own: ModuleType) -> Scores:
    scores = {}
    for name in ("popular", "scan", "chat"):
        pool, hits, total = ChoosingPool(64, 16), 0, 0
        pool.cache, pool.eviction = PrefixCache(pool), own.Eviction()
        for prompt in prefixes(4, 400, name):
            table = BlockTable(pool)
            found = pool.cache.find(prompt)
            pool.eviction.found(list(found.blocks))
            pool.cache.adopt(table, *found)
            hits, total = hits + table.num_tokens, total + len(prompt)
            table.append(len(prompt) - table.num_tokens)
            pool.cache.publish(table, prompt)
            table.free()
        scores[name] = share(hits, total)
    return scores


class Replica:
    """A machine that computes one prompt after the other, with a prefix cache."""

    def __init__(self) -> None:
        self.pool = BlockPool(64, 16)
        self.cache, self.free_at, self.now = PrefixCache(self.pool), 0.0, 0.0

    @property
    def waiting(self) -> float:
        return max(0.0, self.free_at - self.now)

    def found(self, prompt: list[int]) -> int:
        return 16 * len(self.cache.find(prompt).blocks)

    def serve(self, prompt: list[int]) -> float:
        """Returns when its first token comes out."""
        table = BlockTable(self.pool)
        self.cache.adopt(table, *self.cache.find(prompt))
        work = BASE + 1.5 * (len(prompt) - table.num_tokens)
        table.append(len(prompt) - table.num_tokens)
        self.cache.publish(table, prompt)
        table.free()
        self.free_at = max(self.free_at, self.now) + work
        return self.free_at


def router(own: ModuleType) -> Scores:
    scores = {}
    for name in ("popular", "scan", "chat"):
        replicas, waits = [Replica() for _ in range(4)], []
        for i, prompt in enumerate(prefixes(5, 400, name)):
            now = 40.0 * i
            for replica in replicas:
                replica.now = now
            waits.append(replicas[own.route(list(prompt), replicas)].serve(prompt) - now)
        scores[name] = 100 / (1 + sum(waits) / len(waits) / 1000)
    return scores


def window(own: ModuleType) -> Scores:
    scores = {}
    for name, size, block_size, length in (("short", 64, 16, 400), ("long", 512, 16, 2000), ("uneven", 100, 16, 1500)):
        held: list[int] = []
        kept = full = 0
        for position in range(length):
            if position % block_size == 0:
                held.append(position // block_size)
            for block in sorted(own.to_free(position, list(held), size, block_size)):
                held.remove(block)
            read = range(max(0, position - size + 1) // block_size, position // block_size + 1)
            if not set(read) <= set(held):
                kept = full = 1
                break
            kept, full = kept + len(held), full + position // block_size + 1
        scores[name] = 100 * (1 - kept / full)
    return scores


def quantiser(own: ModuleType) -> Scores:
    rng = np.random.default_rng(6)
    plain = rng.standard_normal((512, 64)).astype(np.float32)  # [num_rows, head_size]
    channels = plain * np.where(np.arange(64) % 16 == 0, 12, 1).astype(np.float32)  # [num_rows, head_size]
    rows = plain * np.exp(rng.standard_normal((512, 1))).astype(np.float32)  # [num_rows, head_size]
    scores = {}
    for name, x in {"plain": plain, "large channels": channels, "uneven rows": rows}.items():
        stored = own.encode(x.copy())
        bits = 8 * sum(np.asarray(part).nbytes for part in stored) / x.size
        noise = float(((np.asarray(own.decode(stored), np.float64) - x) ** 2).mean())
        scores[name] = 10 * np.log10(float((x**2).mean()) / max(noise, 1e-20)) - 6.02 * bits
    return {name: float(score) for name, score in scores.items()}


def drafts(own: ModuleType) -> Scores:
    scores = {}
    for name, tokens in drafted_texts():
        at, steps = 8, 0
        while at < len(tokens):
            guesses = list(own.propose(list(tokens[:at])))[:4]
            right = 0
            while right < len(guesses) and at + right < len(tokens) and guesses[right] == tokens[at + right]:
                right += 1
            at, steps = at + right + 1, steps + 1  # the model's own next token comes with every step
        scores[name] = (at - 8) / steps
    return scores


def drafted_texts() -> Iterator[tuple[str, list[int]]]:
    rng = np.random.default_rng(7)
    fields = [[11, 12, int(rng.integers(20, 60)), 13, 14, 15, int(rng.integers(20, 60)), 16] for _ in range(40)]
    yield "records", [token for each in fields for token in each]
    document = rng.integers(100, 400, 200).tolist()
    quotes = [[*document[i : i + 12], int(rng.integers(100, 400))] for i in rng.integers(0, 188, 12)]
    yield "quotes", document + [token for quote in quotes for token in quote]
    words = [rng.integers(100, 400, int(rng.integers(1, 4))).tolist() for _ in range(30)]
    picked = rng.zipf(1.6, 300) % 30
    yield "prose", [token for i in picked for token in words[i]]


def victim(own: ModuleType) -> Scores:
    class Choosing(Scheduler):
        def _make_room(self, group: SequenceGroup, chunks: Any, plan: Any) -> bool:
            while blocks_for(chunks) > self.block_pool.num_free:
                last = own.choose(self.running[self.running.index(group) :])
                self.preempt(last, plan)
                if last is group:
                    return False
            return True

    return {name: share(wanted, server.num_computed) for name, server, wanted in runs_in_little_room(Choosing)}


def runs_in_little_room(scheduler: type[Scheduler]) -> Iterator[tuple[str, Server, int]]:
    """(name, the server afterwards, tokens that had to be computed at least)"""
    loads = {"short": jobs(8, 60, 20, (10, 60), (20, 120)), "mixed": jobs(9, 60, 20, (10, 400), (10, 200))}
    loads["bursts"] = jobs(10, 60, 40, (30, 200), (20, 150), burst=15)
    for name, load in loads.items():
        server = Server(64, scheduler=scheduler)
        server.run(load)
        yield name, server, sum(job.num_tokens - 1 for job in load)


def admission(own: ModuleType) -> Scores:
    class Asking(Scheduler):
        def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
            found = super().admission(group, cached)
            if found is not Admission.NOW or not self.running:
                return found
            size, pool = self.block_pool.block_size, self.block_pool
            asked = own.admit(group.blocks_to_start(size), pool.num_free, list(self.running), size)
            return Admission.NOW if asked else Admission.LATER

    scores = {}
    for name, server, _ in runs_in_little_room(Asking):
        scores[name] = 1000 * sum(len(job.times) for job in server.jobs.values()) / server.now
    return scores


def chunks(own: ModuleType) -> Scores:
    loads = {"steady": jobs(11, 80, 120, (50, 400), (20, 60)), "long prompts": jobs(12, 50, 400, (500, 3000), (20, 60))}
    loads["bursts"] = jobs(13, 80, 120, (50, 600), (20, 60), burst=8)
    scores = {}
    for name, load in loads.items():
        server = Server(4000, max_num_seqs=64)

        def ask(server: Server = server) -> None:
            left = [group.leader.num_uncomputed_tokens for group in server.scheduler.groups]
            decoding = sum(tokens == 1 for tokens in left)
            server.scheduler.max_num_batched_tokens = max(1, own.budget(decoding, sum(left) - decoding))

        server.run(load, ask)
        good = 0
        for job in load:
            gaps = [b - a for a, b in zip(job.times, job.times[1:])]
            good += job.times[0] - job.arrival <= 500 and max(gaps, default=0) <= 40
        scores[name] = share(good, len(load))
    return scores


def tree(own: ModuleType) -> Scores:
    scores = {}
    for name in ("popular", "scan", "chat"):
        index, hits, total, is_small = own.Index(1500), 0, 0, True
        for prompt in prefixes(14, 400, name):
            hits, total = hits + checked(index.find(list(prompt)), prompt), total + len(prompt)
            index.insert(list(prompt))
            is_small &= index.num_tokens() <= 1500
        scores[name] = share(hits, total) if is_small else 0.0
    return scores


def checked(found: int, prompt: list[int]) -> int:
    return found if 0 <= found <= len(prompt) else 0


SCORES: dict[str, Callable[[ModuleType], Scores]] = {
    "deadline": deadline, "eviction": eviction, "router": router, "window": window, "quantiser": quantiser,
    "drafts": drafts, "victim": victim, "admission": admission, "chunks": chunks, "tree": tree,
}  # fmt: skip
