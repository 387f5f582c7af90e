"""`learn init --seed NAME`: the same exercises with other numbers in their small examples, for each learner others.

An example is a piece of a stub's docstring. Its numbers are drawn from the seed, and what comes out is computed by
minipage's own solution, so it cannot be wrong; drawn with nothing, it is what the stub says already. What is to be
written stays the same, and so do the graders, which ask for the contract and not for an example.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from minipage.learn.course import Lesson, lessons
from minipage.learn.load import load

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Example:
    lesson: str  # its number
    given: Numbers  # those of the stub
    draw: Callable[[random.Random], Numbers]
    text: Callable[[Any, Numbers], str]  # from the solution of the lesson, and the numbers


def stub_text(lesson: Lesson, seed: str = "") -> str:
    """The exercise as it is handed out."""
    text = lesson.stub.read_text(encoding="utf-8")
    if not seed:
        return text
    solution = load(lesson, lesson.solution)
    for i, example in enumerate(EXAMPLES):
        if example.lesson == lesson.number:
            numbers = example.draw(random.Random(f"{seed}/{i}"))
            text = text.replace(example.text(solution, example.given), example.text(solution, numbers))
    return text


def blocks_for(tokens: int, size: int) -> int:
    return len(range(0, tokens, size))


# ---- lesson 1


def draw_reserved(rng: random.Random) -> Numbers:
    most = 100 * rng.choice([2, 4, 5, 8, 10])
    return {"lengths": [most // 20 * rng.randint(1, 20) for _ in range(2)], "most": most}


def reserved(solution: Any, n: Numbers) -> str:
    waste, slots = solution.reserved_waste(n["lengths"], n["most"]), n["most"] * len(n["lengths"])
    return (
        f"reserved_waste({n['lengths']}, max_len={n['most']}) is {waste:g}: "
        f"of {slots} slots {sum(n['lengths'])} were used."
    )


def draw_paged(rng: random.Random) -> Numbers:
    size, num_blocks = 4, rng.choice([2, 4, 5, 8])  # so that the share has few digits
    first = rng.randint(1, num_blocks - 1)
    return {"lengths": [size * blocks - rng.randint(0, 3) for blocks in (first, num_blocks - first)], "size": size}


def paged(solution: Any, n: Numbers) -> str:
    one, other = (blocks_for(length, n["size"]) for length in n["lengths"])
    share = solution.paged_waste(n["lengths"], n["size"])
    slots = (one + other) * n["size"]
    return (
        f"paged_waste({n['lengths']}, block_size={n['size']}) is {share:g}: {one} + {other} blocks are {slots} slots, "
        f"of which {sum(n['lengths'])} are used."
    )


def draw_fit(rng: random.Random) -> Numbers:
    large = 50 * rng.randint(3, 9)
    room = large * rng.randint(2, 3) + 10 * rng.randint(2, 9)
    return {"needed": [large] * (room // large + 1) + [10], "room": room}


def fit(solution: Any, n: Numbers) -> str:
    return f"how_many_fit({n['needed']}, num_slots={n['room']}) is {solution.how_many_fit(n['needed'], n['room'])}."


# ---- lessons 3, 4 and 7: pictures of pools and tables


def draw_queue(rng: random.Random) -> Numbers:
    counts = [rng.randint(1, 3) for _ in range(5)]
    free = rng.sample(range(5), 3)
    return {"free": free, "counts": [0 if block in free else counts[block] for block in range(5)]}


def queue(solution: Any, n: Numbers) -> str:
    free = " ".join(map(str, n["free"]))
    return (
        f"    free queue, next first   {free}        ──▶ blocks leave here, at the front\n"
        "                                          ◀── and come back at the end\n"
        f"    reference counts         {n['counts']}"
    )


def draw_table(rng: random.Random) -> Numbers:
    return {"blocks": rng.sample(range(10), 3)}


def table(solution: Any, n: Numbers) -> str:
    one, two, three = n["blocks"]
    return f"    physical block   {one}              {two}              {three}          <- self.blocks"


def draw_needed(rng: random.Random) -> Numbers:
    size = rng.choice([2, 4, 8, 16])
    return {"tokens": size * rng.randint(2, 6), "size": size}


def needed(solution: Any, n: Numbers) -> str:
    first, second = (solution.blocks_needed(n["tokens"] + more, n["size"]) for more in (0, 1))
    size = n["size"]
    return (
        f"blocks_needed({n['tokens']}, block_size={size}) is {first}, "
        f"and blocks_needed({n['tokens'] + 1}, block_size={size}) is {second}."
    )


def draw_fork(rng: random.Random) -> Numbers:
    return {"blocks": rng.sample(range(10), 3)}


def fork(solution: Any, n: Numbers) -> str:
    full, shared, new = n["blocks"]
    return (
        f"    before      parent  [ {full} │ {shared} ]       child  [ {full} │ {shared} ]"
        f"       block {shared} is part full, and has two references\n"
        f"    child.append(1)                             orders BlockCopy({shared}, {new}):"
        f" copy block {shared} to block {new} first\n"
        f"    after       parent  [ {full} │ {shared} ]       child  [ {full} │ {new} ]"
        f"       block {full} is full: nobody writes it, it stays shared"
    )


# ---- lessons 6, 8, 10 and 13


def draw_budget(rng: random.Random) -> Numbers:
    wanted = [1, 1, rng.randint(6, 20), rng.randint(2, 9)]
    return {"wanted": wanted, "budget": rng.randint(5, 2 + wanted[2])}


def budget(solution: Any, n: Numbers) -> str:
    shares = solution.share_out(list(n["wanted"]), n["budget"])
    return f"share_out({n['wanted']}, budget={n['budget']}) is {shares}."


def draw_secret(rng: random.Random) -> Numbers:
    return {"byte": rng.randint(1, 255), "salt": rng.choice(["alice", "bob", "carol", "dave", "erin"])}


def secret(solution: Any, n: Numbers) -> str:
    digest = blake2b(n["salt"].encode(), key=bytes([n["byte"]]) * 32, digest_size=32).hexdigest()
    return f'With the secret bytes([{n["byte"]}]) * 32, root_hash("{n["salt"]}").hex() begins with {digest[:12]}.'


def draw_bytes(rng: random.Random) -> Numbers:
    return {
        "size": rng.choice([8, 16, 32]),
        "layers": rng.randint(4, 40),
        "heads": rng.choice([4, 8, 12, 16]),
        "head": 64,
    }


def bytes_of_block(solution: Any, n: Numbers) -> str:
    plain, quantized = (
        solution.bytes_per_block(n["size"], n["layers"], n["heads"], n["head"], q) for q in (False, True)
    )
    return (
        f"For blocks of {n['size']} tokens in {n['layers']} layers with {n['heads']} heads of {n['head']} "
        f"it is {plain}, and {quantized} if quantized."
    )


def draw_percentile(rng: random.Random) -> Numbers:
    first = 10 * rng.randint(1, 9)
    return {"values": [first, first + 20 * rng.randint(1, 5)]}


def percentile(solution: Any, n: Numbers) -> str:
    return f"percentile({n['values']}, 50) is {solution.percentile(n['values'], 50):g}."


def draw_capacity(rng: random.Random) -> Numbers:
    size = rng.choice([8, 16, 32])
    per_request, requests = rng.randint(2, 3), rng.randint(2, 5)
    num_blocks = per_request * requests + rng.randint(0, per_request - 1)
    return {
        "memory": num_blocks * size * 10 + 10 * rng.randint(0, size - 1), "size": size,
        "tokens": size * (per_request - 1) + rng.randint(1, size),
    }  # fmt: skip


def capacity(solution: Any, n: Numbers) -> str:
    num_fit = solution.capacity(memory=n["memory"], bytes_per_token=10, block_size=n["size"], num_tokens=n["tokens"])
    there, each = n["memory"] // (10 * n["size"]), blocks_for(n["tokens"], n["size"])
    return (
        f"capacity(memory={n['memory']}, bytes_per_token=10, block_size={n['size']}, num_tokens={n['tokens']}) "
        f"is {num_fit}: {there} blocks, and {each} for each request."
    )


EXAMPLES = [
    Example("1", {"lengths": [100, 300], "most": 400}, draw_reserved, reserved),
    Example("1", {"lengths": [5, 8], "size": 4}, draw_paged, paged),
    Example("1", {"needed": [400, 400, 400, 10], "room": 1000}, draw_fit, fit),
    Example("3", {"free": [4, 0, 2], "counts": [0, 1, 0, 2, 0]}, draw_queue, queue),
    Example("4", {"blocks": [7, 1, 3]}, draw_table, table),
    Example("4", {"tokens": 8, "size": 4}, draw_needed, needed),
    Example("6", {"wanted": [1, 1, 10, 5], "budget": 8}, draw_budget, budget),
    Example("7", {"blocks": [7, 1, 3]}, draw_fork, fork),
    Example("8", {"byte": 7, "salt": "alice"}, draw_secret, secret),
    Example("10", {"size": 16, "layers": 12, "heads": 12, "head": 64}, draw_bytes, bytes_of_block),
    Example("13", {"values": [10, 20]}, draw_percentile, percentile),
    Example("13", {"memory": 1000, "size": 16, "tokens": 20}, draw_capacity, capacity),
]


def check_examples() -> list[str]:
    """What of these is not in its stub, once: for the tests."""
    stubs = {lesson.number: lesson for lesson in lessons()}
    return [
        text
        for example in EXAMPLES
        if (lesson := stubs[example.lesson])
        and lesson.stub.read_text(encoding="utf-8").count(
            text := example.text(load(lesson, lesson.solution), example.given)
        )
        != 1
    ]
