"""Traffic, drawn by a seed: the same for everybody who is scored."""

from __future__ import annotations

import random

from minipage.learn.projects.server import Job


def jobs(
    seed: int, count: int, gap: float, prompt: tuple[int, int], output: tuple[int, int], burst: int = 1
) -> list[Job]:
    """`gap` milliseconds between arrivals, on average; `burst` of them arrive together; lengths between two bounds."""
    rng, now, found = random.Random(seed), 0.0, []
    for i in range(count):
        if i % burst == 0:
            now += rng.expovariate(1 / (gap * burst))
        tokens = [rng.randint(1, 900) for _ in range(rng.randint(*prompt))]
        patience = rng.choice([250.0, 500.0, 2000.0])
        found.append(Job(f"r{i}", now, tokens, rng.randint(*output), now + patience))
    return found


def prefixes(seed: int, count: int, kind: str) -> list[list[int]]:
    """Prompts that begin alike: "popular" (few beginnings, very unequally wanted), "scan" (popular ones, and long texts
    that come once), "chat" (conversations that grow).
    """
    rng = random.Random(seed)
    heads = [[rng.randint(1, 900) for _ in range(96)] for _ in range(24)]
    weights = [1 / (i + 1) for i in range(24)]
    if kind == "chat":
        talks = [[rng.randint(1, 900) for _ in range(32)] for _ in range(16)]
        found = []
        for _ in range(count):
            talk = talks[min(int(rng.expovariate(0.25)), 15)]
            talk += [rng.randint(1, 900) for _ in range(rng.randint(16, 48))]
            if len(talk) > 400:
                del talk[32:]
            found.append(list(talk))
        return found
    found = []
    for _ in range(count):
        head = rng.choices(heads, weights)[0]
        if kind == "scan" and rng.random() < 0.3:
            head = [rng.randint(1, 900) for _ in range(160)]
        found.append(head + [rng.randint(1, 900) for _ in range(rng.randint(4, 24))])
    return found
