"""Every rank except the first: it waits for a message, does what it says, and waits for the next.

It never decides anything. What fails here, rank 0 is told; and when rank 0 has gone, this process ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from itertools import count
from typing import Any, NoReturn

import numpy as np

from minipage.errors import ConfigurationError
from minipage.memory import BlockPool
from minipage.memory.kv_groups import KVGroups
from minipage.worker.ranks.meeting import BEAT, OVER, Disconnected, Meeting, share_cores
from minipage.worker.ranks.message import STEP, unpack, unpack_call, unpack_step
from minipage.worker.ranks.process_group import ProcessGroup
from minipage.worker.runner import ModelRunner


class Stop(Exception):
    """Rank 0 needs no more of this rank."""


def follow(runner: ModelRunner, group: ProcessGroup, meeting: Meeting) -> None:
    """Do what rank 0 says, until it says stop."""
    share_cores(group.size)
    while True:
        try:
            do(runner, group, meeting)
        except Stop:
            return
        except Disconnected:  # rank 0 has left the step, and waits for everybody to do the same; or it has ended
            group.connect()


def do(runner: ModelRunner, group: ProcessGroup, meeting: Meeting) -> None:
    """Do what one message says."""
    kind, arrays = unpack(group.receive())
    if kind == STEP:
        step = unpack_step(arrays)
        runner.copy(step.plan)
        if step.batches:
            runner.compute(step.batches)
        return
    name, arguments = unpack_call(arrays)
    number, in_groups = arguments.pop("number", 0), arguments.pop("in_groups", True)
    runner.kv_groups = KVGroups.of(runner.model.kv.num_layers, runner.model.kv.windows, in_groups)
    if name == "stop":
        raise Stop
    error, answer = None, None
    try:
        answer = call(runner, name, arguments)
    except ConfigurationError as refusal:  # as it well may
        error = str(refusal)
    meeting.tell(f"answer {number} of {group.rank}", [error, answer])


# ---- calls, in every rank


def call(runner: ModelRunner, name: str, arguments: dict[str, Any]) -> Any:
    """What a message names; the answer can be written as JSON."""
    return CALLS[name](runner, **arguments)


def blocks_that_fit(runner: ModelRunner, memory: int | str | None, block_size: int, name: str) -> int:
    return runner.blocks_that_fit(memory, block_size, name)


def allocate(runner: ModelRunner, pool: tuple[int, int], swap_pool: tuple[int, int] | None) -> int:
    """Returns how many bytes the blocks take in this rank."""
    runner.allocate(BlockPool(*pool), BlockPool(*swap_pool) if swap_pool else None)
    return runner.kv_cache.nbytes


def state(runner: ModelRunner) -> dict[str, Any]:
    """What must be the same everywhere."""
    caches = [runner.kv_cache, runner.swap_cache]
    return {
        "blocks": [list(cache.k.shape[:3]) if cache else None for cache in caches],  # layers, blocks, tokens in a block
        "dtype": str(runner.kv_cache.k.dtype),
        "groups": list(runner.kv_groups.windows),
    }


def num_bytes(runner: ModelRunner) -> int:
    """Of K and V in this rank."""
    return runner.kv_cache.nbytes


def block(runner: ModelRunner, layer: int, block: int) -> list[list[list[list[float]]]]:
    """K and V of a block in one layer, each [block_size, heads of this rank, head_size], as they are stored."""
    arrays = (runner.kv_cache.k[layer, block], runner.kv_cache.v[layer, block])  # [block_size, heads, D]
    return [np.asarray(array.cpu() if hasattr(array, "cpu") else array).tolist() for array in arrays]


CALLS: dict[str, Any] = {
    "blocks_that_fit": blocks_that_fit,
    "allocate": allocate,
    "state": state,
    "num_bytes": num_bytes,
    "block": block,
}


# ---- the process


def show_signs_of_life(group: ProcessGroup, meeting: Meeting) -> None:
    """Tell rank 0 every second how far this rank is, and how long it has computed; if nobody listens any more, end."""
    store = meeting.connect()

    def beat() -> None:
        for number in count():
            try:
                store.set(BEAT.format(group.rank), f"{group.num_done} {2 * time.process_time():.0f} {number}")
                if store.check([OVER]):
                    os._exit(0)
            except Exception:
                os._exit(1)
            time.sleep(1)

    threading.Thread(target=beat, name="minipage beat", daemon=True).start()


def end_with_rank_0() -> None:
    """Rank 0 holds the other end of this process's standard input: when that closes, rank 0 has ended."""

    def listen() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=listen, name="minipage rank 0", daemon=True).start()


def give_up(meeting: Meeting, error: BaseException) -> NoReturn:
    """End this process; rank 0 is told why."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    with suppress(Exception):
        meeting.tell_failure(text)
    os._exit(1)
