"""How much of the memory holds something useful? Reserving against paging: `python -m minipage.simulate`.

Nothing is computed here. Requests are two lengths, and a step gives one more token to every request that is running.
There are always more requests waiting, and they start first come, first served, as soon as the next one finds a place:

    waiting ──▶ its prompt fits? ──▶ running: one token a step ──▶ done: gives its slots back
        ◀────────────────────────────  paged only: when blocks run out, the last to come waits again

In each step every slot is counted as token state, reserved, internal or external waste (baselines.py says what
these are), and the shares are averaged over time. That is Figure 2 of the PagedAttention paper (arXiv 2309.06180), for
OPT-13B on a GPU with room for 15,728 slots.

The paper publishes only the means of its ShareGPT workload: 161.31 prompt and 337.99 output tokens. Shapes and spreads
are our choice: prompts log-normal with a standard deviation of 200, outputs gamma with one of 296. A request that would
be longer than the model's 2,048 tokens is drawn again, which brings the means down to 157 and 334.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minipage.errors import ConfigurationError, InvalidRequestError, OutOfBlocksError, require_positive
from minipage.memory import BlockPool, BlockTable
from minipage.simulate.baselines import (
    BuddyAllocator,
    ContiguousTable,
    ReservationRule,
    SlotUsage,
    reserve_max,
    reserve_oracle,
    reserve_pow2,
    slot_usage,
)

NUM_SLOTS = 15_728  # what an A100 with 40 GB has left beside OPT-13B
MAX_MODEL_LEN = 2048
BLOCK_SIZE = 16
WARM_UP = 0.25  # the share of the requests that finish before anything is measured: all of them began together

Table = BlockTable | ContiguousTable


class Request(NamedTuple):
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def final_len(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens


Memory = Callable[[Request], Table]  # makes an empty table for a request, over the one pool or allocator


class Result(NamedTuple):
    """What a simulation measured."""

    shares: SlotUsage  # of all slots, averaged over time, in %
    mean_batch: float  # requests running at a time
    preemptions: float  # how often a request lost its slots and had to start again, on average


# The paper's Figure 2, and the mean number of batched requests in its Figure 13a (ShareGPT, 2 requests per second).
PAPER = {
    "Orca (Max)": (SlotUsage(20.4, 13.3, 57.3, 8.9), 7.00),
    "Orca (Pow2)": (SlotUsage(26.8, 17.9, 13.6, 41.6), 9.81),
    "Orca (Oracle)": (SlotUsage(38.2, 25.2, 0.0, 36.6), 13.62),
    "paged": (SlotUsage(96.3, math.nan, math.nan, math.nan), 30.42),  # of the rest only the sum is given, 3.7
}


def memories(num_slots: int = NUM_SLOTS, block_size: int = BLOCK_SIZE) -> dict[str, Memory]:
    """The four ways to manage `num_slots` slots, by the names that the paper gives them (it calls paged "vLLM")."""
    require_positive(num_slots=num_slots, block_size=block_size)
    return {
        "Orca (Max)": contiguous(reserve_max, num_slots),
        "Orca (Pow2)": contiguous(reserve_pow2, num_slots),
        "Orca (Oracle)": contiguous(reserve_oracle, num_slots),
        "paged": paged(num_slots, block_size),
    }


def contiguous(rule: ReservationRule, num_slots: int, max_model_len: int = MAX_MODEL_LEN) -> Memory:
    allocator = BuddyAllocator(num_slots)
    return lambda request: ContiguousTable(allocator, rule(*request, max_model_len))


def paged(num_slots: int, block_size: int) -> Memory:
    if num_slots < block_size:
        raise ConfigurationError(f"a block of {block_size} slots does not fit into a memory of {num_slots}.")
    pool = BlockPool(num_slots // block_size, block_size)
    return lambda request: BlockTable(pool)


def draw_requests(seed: int) -> Iterator[Request]:
    """An endless stream of requests, the same for the same seed."""
    generator = np.random.default_rng(seed)
    mu, sigma = lognormal_parameters(mean=161.31, std=200)
    shape, scale = gamma_parameters(mean=337.99, std=296)
    while True:
        prompts = generator.lognormal(mu, sigma, 1000)  # [1000]
        outputs = generator.gamma(shape, scale, 1000)  # [1000]
        for prompt, output in zip(prompts, outputs):
            request = Request(max(1, round(prompt)), max(1, round(output)))
            if request.final_len <= MAX_MODEL_LEN:
                yield request


def mean_held(requests: Iterable[Request]) -> float:
    """Tokens that a running request holds, averaged over time. Divide a memory by it, to see how many run at once.

    A request of p prompt and o output tokens runs for o steps and holds p + j tokens in step j: o * p + o * (o + 1) / 2
    in all of them. The sum over all requests, divided by all of their steps, counts a long answer as often as it is
    there to be seen. If answers do not depend on prompts, it is E[p] + E[o^2] / (2 E[o]), and a half: the prompt and
    half of the answer only if all answers are equally long.
    """
    prompts, outputs = np.array([*requests], float).T  # [num_requests] each
    return float((outputs * prompts + outputs * (outputs + 1) / 2).sum() / outputs.sum())


def lognormal_parameters(mean: float, std: float) -> tuple[float, float]:
    """mu and sigma of the log-normal distribution with this mean and standard deviation."""
    variance = math.log(1 + (std / mean) ** 2)
    return math.log(mean) - variance / 2, math.sqrt(variance)


def gamma_parameters(mean: float, std: float) -> tuple[float, float]:
    """Shape and scale of the gamma distribution with this mean and standard deviation."""
    return (mean / std) ** 2, std**2 / mean


# ---- the simulation


@dataclass(eq=False)
class Job:
    """A request on its way. (Compared by identity: no two are the same.)"""

    request: Request
    table: Table
    num_tokens: int  # the prompt, and what was generated so far; a preemption takes their slots, but they are known


def simulate(
    memory: Memory,
    requests: Iterator[Request],
    num_slots: int,
    num_requests: int,
    on_finish: Callable[[], object] = lambda: None,
) -> Result:
    """Run until `num_requests` have finished. The first quarter of these warms up, and is not measured.

    Raises InvalidRequestError if a request does not fit even when it is alone.
    """
    require_positive(num_requests=num_requests)
    waiting = deque[Job]()
    running: list[Job] = []
    num_finished = num_measured = num_steps = num_preempted = num_running = 0
    totals = np.zeros(4)  # [4]: slots by use, summed over steps
    while num_finished < num_requests or num_measured == 0:
        preempted = decode(running)
        waiting.extendleft(preempted)  # the last to come ends up behind the others
        if not preempted:
            admit(running, waiting, memory, requests)
        if not running:
            raise InvalidRequestError(
                f"a request of {waiting[0].request.final_len} tokens finds no place in an empty memory of {num_slots} "
                "slots: with what is reserved for it, it takes more. Give it more slots."
            )
        done = [job for job in running if job.num_tokens == job.request.final_len]
        if num_finished >= WARM_UP * num_requests:
            usage = slot_usage(num_slots, ((job.table, job.request.final_len) for job in running))
            totals += usage  # [4]
            num_steps += 1
            num_running += len(running)
            num_preempted += len(preempted)
            num_measured += len(done)
        for job in done:
            job.table.free()
            running.remove(job)
            num_finished += 1
            on_finish()
    shares = SlotUsage(*(100 * totals / num_slots / num_steps).tolist())
    return Result(shares, num_running / num_steps, num_preempted / num_measured)


def decode(running: list[Job]) -> list[Job]:
    """One more token for everybody. Returns those that had to give way, the last to come first."""
    preempted: list[Job] = []
    for job in running:  # from the first; a preemption takes from the other end of this very list
        while not fits(job.table, 1):
            last = running.pop()
            last.table.free()
            preempted.append(last)
            if last is job:
                break
        else:
            job.num_tokens += 1
    return preempted


def admit(running: list[Job], waiting: deque[Job], memory: Memory, requests: Iterator[Request]) -> None:
    """Start requests in the order in which they came, until the next one does not fit, or no more come."""
    while True:
        if not waiting:
            request = next(requests, None)
            if request is None:
                return
            waiting.append(Job(request, memory(request), request.num_prompt_tokens))
        if not fits(waiting[0].table, waiting[0].num_tokens):
            return
        running.append(waiting.popleft())


def fits(table: Table, num_tokens: int) -> bool:
    """Append to the table, if there is room."""
    try:
        table.append(num_tokens)
    except OutOfBlocksError:
        return False
    return True


# ---- the example that everybody knows


class Example(NamedTuple):
    num_tokens: int  # of all requests together
    contiguous: int  # slots reserved for them
    paged: int  # slots of the blocks that hold them


def worked_example(lengths: Sequence[int], longest: int, block_size: int = BLOCK_SIZE) -> Example:
    """Store texts of these lengths in both ways: with room for the `longest` each, and in blocks."""
    allocator = BuddyAllocator(len(lengths) * 2 * longest)
    pool = BlockPool(sum(lengths) // block_size + len(lengths), block_size)
    rows = [ContiguousTable(allocator, longest) for _ in lengths]
    tables = [BlockTable(pool) for _ in lengths]
    for row, table, length in zip(rows, tables, lengths):
        row.append(length)
        table.append(length)
    return Example(sum(lengths), sum(row.num_reserved for row in rows), pool.num_used * block_size)


def draw_lengths(distribution: str, count: int, shortest: int, longest: int, seed: int) -> list[int]:
    """Lengths between two bounds: "uniform", or "log-uniform", where doubling a length makes it half as likely."""
    generator = np.random.default_rng(seed)
    if distribution == "uniform":
        lengths = generator.uniform(shortest, longest, count)  # [count]
    else:
        lengths = np.exp(generator.uniform(math.log(shortest), math.log(longest), count))  # [count]
    return [round(length) for length in lengths]
