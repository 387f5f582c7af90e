"""How ranks are started, and how they find each other: in a store of torch.distributed, kept by rank 0 or torchrun.

    LLM(tensor_parallel_size=2)        this process is rank 0 and starts the others: python -m minipage.engine.rank ...
    torchrun --nproc-per-node 2 ...    every process finds its number in its environment, on one machine or several

Here they compare, before anything is loaded, whether they are of one version and have one model.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numba
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from minipage.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
PATIENCE = timedelta(minutes=10)  # for what others have to read and to load
BEAT, FAILURE, OVER = "beat of {}", "failure of {}", "it is over"  # keys of the store; the first two by rank
THREADS = "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"


class Disconnected(Exception):
    """A rank has ended, or has left the step in the middle."""


@dataclass
class Meeting:
    """Where ranks find each other."""

    store: Store
    rank: int
    size: int
    host: str | None  # on which address to listen for each other; None: they may be on several machines
    address: tuple[str, int]  # of the store
    prefix: str  # of what is ours in it
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)  # by rank, those started here
    pids: dict[int, int] = field(default_factory=dict)  # by rank, of those on this machine that torchrun has started
    device: int = 0  # which GPU of this machine this rank has

    def connect(self) -> Store:
        """Another connection to the store, for another thread."""
        return PrefixStore(self.prefix, TCPStore(*self.address, is_master=False, timeout=PATIENCE))

    def tell(self, key: str, value: Any) -> None:
        self.store.set(key, json.dumps(value))

    def read(self, key: str) -> Any:
        """What is told; this waits for it."""
        return json.loads(self.store.get(key))

    def wait_for(self, key: str, rank: int, lost: Callable[[], str | None] = lambda: None) -> Any:
        """What another rank tells. Raises Disconnected if it has ended instead, or if somebody is lost."""
        pause = 0.0005  # seconds
        while not self.store.check([key]):
            if why := self.end_of(rank) or lost():
                raise Disconnected(why)
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        told = self.read(key)
        self.store.delete_key(key)
        return told

    def end_of(self, rank: int) -> str | None:
        """How another rank has ended, as far as is known; None: it runs."""
        process, last_words = self.processes.get(rank), FAILURE.format(rank)
        with suppress(RuntimeError):  # of a store that is gone
            if self.store.check([last_words]):
                return f"rank {rank} is lost: {self.store.get(last_words).decode()}"
        how = how_it_ended(process) if process else None
        return f"rank {rank} is lost: {how}" if how else None

    def end_all(self) -> None:
        """End all other ranks: those that were started here at once, and others when they next look."""
        with suppress(RuntimeError):  # of a store that is gone
            self.tell(OVER, True)
        for process in self.processes.values():
            process.kill()
        self.wait_for_ends()
        for process in self.processes.values():
            if process.stdin:
                process.stdin.close()

    def wait_for_ends(self) -> None:
        """Return when all ranks that were started here have ended."""
        for process in self.processes.values():
            process.wait()

    def kill_all(self) -> None:
        """End those on this machine too that torchrun has started. None stays: not even one that is stopped."""
        self.end_all()
        for pid in self.pids.values():
            with suppress(OSError):
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def tell_failure(self, text: str) -> None:
        self.store.set(FAILURE.format(self.rank), text)


def is_under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank_by_torchrun() -> tuple[int, int]:
    """(rank, number of ranks), as torchrun says; (0, 1) without it. Raises ConfigurationError if it says neither."""
    if not is_under_torchrun():
        return 0, 1
    try:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    except (KeyError, ValueError) as error:
        raise ConfigurationError(
            "TORCHELASTIC_RUN_ID is set, but RANK and WORLD_SIZE are no numbers, as torchrun would make them. Start "
            "this with torchrun, or without that variable."
        ) from error


def start_others(size: int, options: dict[str, Any]) -> Meeting:
    """As rank 0: start the others on this machine."""
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen()
    address = LOOPBACK, listener.getsockname()[1]
    processes = {rank: start(rank, size, address[1]) for rank in range(1, size)}
    store = TCPStore(
        *address, is_master=True, timeout=PATIENCE, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    meeting = Meeting(PrefixStore("ranks", store), 0, size, LOOPBACK, address, "ranks", processes)
    meeting.tell("options", options)
    return meeting


def start(rank: int, size: int, port: int) -> subprocess.Popen[bytes]:
    package = str(Path(__file__).parents[3])
    threads = dict.fromkeys(THREADS, str(threads_of_each(size)))
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "minipage.engine.rank", str(rank), str(size), str(port)],
        stdin=subprocess.PIPE,  # closed when this process ends, however it does
        env=threads | os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for rank 0, which ends them if it ends
    )


def threads_of_each(size: int) -> int:
    return max(1, (os.cpu_count() or 1) // size)


def share_cores(size: int) -> None:
    """Let this thread compute with its share of the cores only: ranks that wake each other's threads are slow."""
    most: int = getattr(numba.config, "NUMBA_NUM_THREADS")  # noqa: B009  (unknown to type checkers)
    numba.set_num_threads(min(most, threads_of_each(size)))


def join(rank: int, size: int, port: int) -> tuple[Meeting, dict[str, Any]]:
    """As one that was started: the meeting, and what rank 0 wants to be loaded."""
    store = TCPStore(LOOPBACK, port, is_master=False, timeout=PATIENCE)
    meeting = Meeting(PrefixStore("ranks", store), rank, size, LOOPBACK, (LOOPBACK, port), "ranks", device=rank)
    return meeting, json.loads(meeting.store.get("options"))


NUMBER = iter(range(1_000_000))  # of the meetings that this process has had under torchrun


def meet_by_torchrun() -> Meeting:
    """As any rank that torchrun has started: where it says."""
    from torch.distributed import rendezvous  # type: ignore[attr-defined]

    rank, size = rank_by_torchrun()
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store, _, _ = next(rendezvous("env://", rank, size, timeout=PATIENCE))
    prefix = f"ranks {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')} {next(NUMBER)}"
    is_one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    return Meeting(
        PrefixStore(prefix, store), rank, size, LOOPBACK if is_one_machine else None, address, prefix,
        device=int(os.environ.get("LOCAL_RANK", "0")),
    )  # fmt: skip


def how_it_ended(process: subprocess.Popen[bytes]) -> str | None:
    """What became of a process, in words; None: it runs."""
    code = process.poll()
    if code is None:
        return None
    if code >= 0:
        return f"it ended with exit code {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"it was killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")
