"""How ranks talk on GPUs: through NCCL. Messages still go from host to host, as process_group.py sends them.

    all_reduce   [T, C] of every rank, in the stream that computes, so that a CUDA graph records it like any kernel
    gather       [N, words of this rank], padded to the widest, to all

A sum of a few kilobytes is all latency. Between GPUs of one host small ones go another way: each rank writes its part
into the memory of the others, and adds up what comes, in one kernel with what is next (peer_sums.py). Whether it says
what NCCL says is tried out first; if not, or if it cannot be had, NCCL makes all sums.

    MINIPAGE_ALL_REDUCE   peers      the default; if it is set and cannot be had, a warning says why
                          nccl       nothing else
                          gloo       through the memory of the hosts: several ranks may share a GPU, to try things out
"""

from __future__ import annotations

import os
import pickle
import threading
import time
import warnings
from socket import gethostname
from typing import Any

import numpy as np
import torch
from torch.distributed import AllreduceOptions, BroadcastOptions, PrefixStore, Store  # type: ignore[attr-defined]

from minipage.attention.cuda.compat import cuda
from minipage.attention.cuda.device_arrays import layout, pinned
from minipage.errors import ConfigurationError
from minipage.model.architecture import Array
from minipage.worker.gpu.peer_sums import MOST_ROWS, Inboxes, Norm, PeerSums, can_add, empty_inbox
from minipage.worker.ranks.process_group import FOREVER, ProcessGroup

VARIABLE = "MINIPAGE_ALL_REDUCE"
WAYS = "peers", "nccl", "gloo"
LONGEST_TRIAL = 30.0  # seconds; kernels are compiled meanwhile
ABORT = 5.0  # seconds at most, until NCCL has left
# Who is lost, and what follows, is up to worker/ranks/watch.py. NCCL's own watch would end the process.
OUR_OWN_WATCH = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}


def gpu_group(store: Store, rank: int, size: int, host: str | None, device: int) -> ProcessGroup:
    """The connections of a rank whose GPU is `device`, of those on this machine; from now on it is the current one."""
    way = os.environ.get(VARIABLE, WAYS[0])
    if way not in WAYS:
        raise ConfigurationError(f"{VARIABLE} is {way!r}; it must be one of {', '.join(WAYS)}.")
    num_gpus = torch.cuda.device_count()
    if way == "gloo":
        torch.cuda.set_device(device % num_gpus)
        return ProcessGroup(store, rank, size, host)
    if device >= num_gpus:
        raise ConfigurationError(
            f"rank {rank} needs a GPU of its own, but this machine has {num_gpus}. Choose a smaller "
            f"tensor_parallel_size; or, to try things out on one GPU, set {VARIABLE}=gloo and enforce_eager=True."
        )
    torch.cuda.set_device(device)
    cuda.select_device(device)  # numba's kernels go there, too
    return NCCLGroup(store, rank, size, host, way)


class NCCLGroup(ProcessGroup):
    """Connections between GPUs, one for each rank."""

    def __init__(self, store: Store, rank: int, size: int, host: str | None, way: str = WAYS[0]) -> None:
        os.environ.update(OUR_OWN_WATCH)
        self._nccl: Any = None
        self.peers: PeerSums | None = None
        self._way = way
        super().__init__(store, rank, size, host)

    def connect(self) -> None:
        from torch.distributed import ProcessGroupNCCL

        super().connect()
        options = ProcessGroupNCCL.Options()
        options._timeout = FOREVER
        with self.told():
            store = PrefixStore(f"nccl {self._num_connected}", self._store)
            self._nccl = ProcessGroupNCCL(store, self.rank, self.size, options)
            self._sum(torch.ones(1, device="cuda"))  # NCCL makes its connections with the first sum
            torch.cuda.synchronize()
            if self._way == "peers":
                self.peers = peer_sums_if_right(self, PrefixStore(f"inboxes {self._num_connected}", self._store))

    def close(self) -> None:
        super().close()
        if self.peers is not None:
            self.peers.stop()
        if self._nccl is not None:  # whatever waits in it ends; then it waits for the graphs that hold its connections
            abort = threading.Thread(target=self._nccl.abort, name="minipage abort", daemon=True)
            abort.start()
            abort.join(0.2)
            for graphs in self.graphs:
                graphs.clear()
            abort.join(ABORT)
            if self.peers is not None and not abort.is_alive():  # so no kernel writes to the others any more
                self.peers.inboxes.close()
        self._nccl = None

    def all_reduce(self, part: Array) -> Array:
        part = part.contiguous()  # [...]
        self.num_done += 1
        self.num_reduced += 1
        self.num_bytes += part.numel() * part.element_size()
        if self.peers is not None and can_add(part):
            return self.peers.add_up(part)  # [...]
        return self._sum(part)  # [...]

    def from_leader(self, numbers: Array) -> Array:
        self.num_done += 1
        options = BroadcastOptions()
        options.asyncOp = False
        finish(self._nccl.broadcast([numbers], options))
        return numbers  # [...]

    def _sum(self, part: Array) -> Array:
        options = AllreduceOptions()
        options.asyncOp = False  # in the current stream, not in one of NCCL's
        finish(self._nccl.allreduce([part], options))
        return part  # [...]

    def gather(self, part: Array, sizes: list[int]) -> Array:
        self.num_done += 1
        num_rows, widest = len(part), max(sizes)
        is_widest = part.shape[1] == widest
        padded = part if is_widest else torch.nn.functional.pad(part, (0, widest - part.shape[1]))  # [N, widest]
        padded = padded.contiguous()  # [N, widest]
        whole = padded.new_empty(self.size * num_rows, widest)  # [ranks * N, widest]
        finish(self._nccl._allgather_base(whole, padded))
        parts = whole.view(self.size, num_rows, widest)  # [ranks, N, widest]
        if min(sizes) == widest:
            return parts.transpose(0, 1).reshape(num_rows, -1)  # [N, sum of sizes]
        return torch.cat([rows[:, :size] for rows, size in zip(parts, sizes)], dim=1)  # [N, sum of sizes]


def finish(work: Any) -> None:
    """Let the current stream wait for it; the host does not."""
    if work is not None:
        work.wait()


def make_inboxes(store: Store, rank: int, size: int) -> Inboxes:
    """Memory that all ranks can write to. Nobody may before all have come back from here.

    Each rank opens the others' through a handle of CUDA, which is for processes of one machine.
    """
    own = cuda.to_device(empty_inbox(size))  # [2 * size * MOST_ROWS * ROW]
    cuda.synchronize()
    told: Any = pickle.dumps((gethostname(), own.get_ipc_handle()))
    store.set(f"inbox of {rank}", told)
    hosts, handles = zip(*(pickle.loads(store.get(f"inbox of {other}")) for other in range(size)))
    if len(set(hosts)) > 1:
        raise RuntimeError("the ranks are on several machines")
    seen = [own if handle is handles[rank] else handle.open() for handle in handles]
    addresses = torch.tensor([layout(inbox).address for inbox in seen], device="cuda")  # [size]
    counts = torch.zeros(MOST_ROWS, dtype=torch.int32, device="cuda")  # [MOST_ROWS]
    opened = [handle for handle in handles if handle is not handles[rank]]
    return Inboxes(own, addresses, counts, pinned((1,), np.int32), opened)


def peer_sums_if_right(group: NCCLGroup, store: Store) -> PeerSums | None:
    """Sums through each other's inboxes, if they can be had in every rank, and are right in every rank."""
    peers, failure, is_right = None, "", False
    try:
        peers = PeerSums(group.rank, make_inboxes(store, group.rank, group.size))
    except Exception as error:  # there are many ways in which a machine may not have it
        failure = f" ({type(error).__name__}: {error})"
    if is_everywhere(group, peers is not None) and peers is not None:
        try:
            is_right = are_right(group, peers)
        except Exception as error:
            failure = f" ({type(error).__name__}: {error})"
        if is_everywhere(group, is_right):
            return peers
    if VARIABLE in os.environ:
        warnings.warn(f"sums between peers cannot be had here{failure}, so NCCL makes all of them.", stacklevel=2)
    return None


def is_everywhere(group: NCCLGroup, is_here: bool) -> bool:
    """Whether it is so in all ranks; all of them wait for each other here."""
    return int(group._sum(torch.tensor([float(is_here)], device="cuda")).item()) == group.size


def are_right(group: NCCLGroup, peers: PeerSums) -> bool:
    """Whether some sums, with and without a norm, are as NCCL makes them."""
    numbers = torch.arange(4096, device="cuda", dtype=torch.float32).view(4, 1024) / 4096  # [4, 1024]
    part, norm = numbers + group.rank, Norm(numbers[0].contiguous(), None, 1e-5, is_centered=False)  # [4, 1024]
    right = group._sum(part.clone())  # [4, 1024]
    found, normed = [], []
    for _ in range(3):  # in both halves of the inboxes, and again in the first
        found.append(peers.add_up(part) + numbers)  # [4, 1024]
        found.append(numbers.clone())
        normed.append(peers.add_onto(found[-1], part, norm))  # [4, 1024]
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    deadline = time.monotonic() + LONGEST_TRIAL
    while not done.query():  # type: ignore[no-untyped-call]
        if time.monotonic() > deadline:
            peers.stop()
        time.sleep(0.001)
    of_right = torch.nn.functional.rms_norm(right + numbers, (1024,), norm.weight, 1e-5)  # [4, 1024]
    pairs = [*((x, right + numbers) for x in found), *((h, of_right) for h in normed)]
    return all(torch.allclose(each, expected, rtol=1e-4, atol=1e-6) for each, expected in pairs)
