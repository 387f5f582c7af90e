"""How ranks talk on CPUs: through torch.distributed's gloo, in NumPy arrays or PyTorch tensors.

    all_reduce   rank 0 [ 1 2 ]   rank 1 [ 10 20 ]   ─▶   [ 11 22 ] in both
    gather       rank 0 [ a b ]   rank 1 [ c ]       ─▶   [ a b c ] in rank 0
    from_leader  rank 0 [ a b ]                      ─▶   [ a b ] in both

What a step adds up is a few kilobytes, and takes as long as two threads take to wake. So small arrays are sent to
everybody as they are, and each adds up all of them, in the order of the ranks: one hop, where gloo's own all-reduce
takes two, and a thread of its own. Large ones, of which everybody would get too much, gloo adds up.

When a rank ends or leaves, its connections close, and whoever waits for it gets `Disconnected` at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch.distributed import (  # type: ignore[attr-defined]
    AllreduceOptions,
    PrefixStore,
    ProcessGroupGloo,
    Store,
)

from minipage.model.architecture import Array
from minipage.simd.arrays import Integers
from minipage.worker.ranks.meeting import Disconnected
from minipage.worker.ranks.message import PIECE, length

LARGE = 256 * 1024  # bytes
FOREVER = timedelta(days=365)  # a rank may have nothing to do for long; who hangs, watch.py finds out
MESSAGES, NUMBERS = range(2)  # tags


class ProcessGroup:
    """One rank's connections to all others.

    Args:
        store: where they find each other.
        host: the address to listen on; None: gloo finds one.
    """

    def __init__(self, store: Store, rank: int, size: int, host: str | None) -> None:
        self.rank = rank
        self.size = size
        self.others = [other for other in range(size) if other != rank]
        self.num_done = 0  # all-reduces and gathers, so that others see whether it gets further
        self.num_reduced = 0  # of these, all-reduces
        self.num_bytes = 0  # that were sent in them, by this rank
        self.waiting_since: float | None = None
        self._store = store
        self._host = host
        self._num_connected = 0  # times, of which the last one counts
        self.graphs: list[Any] = []  # CUDA graphs of sums, which end with the connections
        self._posted: list[Any] = []  # what is being sent; nobody else keeps it, or `close` could not end it
        self.connect()

    def connect(self) -> None:
        """Find the others, wherever everybody was. Raises Disconnected if they do not come."""
        self.close()
        self._num_connected += 1
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        listen = {"hostname": self._host} if self._host else {}
        options._devices = [
            ProcessGroupGloo.create_device(**listen) if listen else ProcessGroupGloo.create_default_device()
        ]
        options._timeout = FOREVER
        store = PrefixStore(f"connection {self._num_connected}", self._store)
        with self.told():
            self._group: Any = ProcessGroupGloo(store, self.rank, self.size, options)

    def close(self) -> None:
        """Leave: whoever waits for this rank is told."""
        self._posted.clear()
        self._group = None

    def abandon(self) -> None:
        """A rank is lost: nothing that waits for it may wait any longer."""
        self.close()

    # ---- messages

    def send(self, message: Integers) -> None:
        """Rank 0 tells all others; it waits until the last message has left, which it has, long ago."""
        with self.told():
            self._flush()
            tensor = torch.from_numpy(message)
            pieces = [tensor[:PIECE], tensor[PIECE:]] if len(message) > PIECE else [tensor]
            for other in self.others:
                self._posted += [self._group.send([piece], other, MESSAGES) for piece in pieces]

    def receive(self) -> Integers:
        """The next message of rank 0."""
        with self.told():
            piece = torch.empty(PIECE, dtype=torch.int32)  # [PIECE]
            self._group.recv([piece], 0, MESSAGES).wait()
            num_left = length(piece.numpy()) - PIECE
            if num_left == 0:
                return piece.numpy()
            rest = torch.empty(num_left, dtype=torch.int32)  # [num_left]
            self._group.recv([rest], 0, MESSAGES).wait()
            return torch.cat([piece, rest]).numpy()

    # ---- numbers

    def all_reduce(self, part: Array) -> Array:
        self.num_reduced += 1
        return self._in_torch(self._all_reduce, part)  # [...]

    def gather(self, part: Array, sizes: list[int]) -> Array:
        return self._in_torch(lambda tensor: self._gather(tensor, sizes), part)  # [N, sum of sizes]

    def from_leader(self, numbers: Array) -> Array:
        """What rank 0 has, [...] -> [...], perhaps in the memory of `numbers`."""
        return self._in_torch(self._from_leader, numbers)

    def _in_torch(self, talk: Callable[[Any], Any], part: Array) -> Array:
        """Call `talk` with what a tensor on the CPU is of `part`; its result is of the same kind as `part`."""
        is_numpy = isinstance(part, np.ndarray)
        tensor = torch.from_numpy(np.ascontiguousarray(part)) if is_numpy else part.contiguous()  # [...]
        self.num_done += 1
        with self.told():
            result = talk(tensor.cpu())  # [...]
        return result.numpy() if is_numpy else result.to(tensor.device)  # [...]

    def _all_reduce(self, tensor: Any) -> Any:
        num_bytes = tensor.numel() * tensor.element_size()
        self.num_bytes += num_bytes
        if num_bytes > LARGE:
            self.waiting_since = time.monotonic()
            self._group.allreduce([tensor], AllreduceOptions()).wait()
            return tensor  # [...]
        parts = [tensor if rank == self.rank else torch.empty_like(tensor) for rank in range(self.size)]  # each [...]
        self._posted += [self._group.send([tensor], other, NUMBERS) for other in self.others]
        for other in self.others:
            self._receive(parts[other], other)
        self._flush()
        total = parts[0].float() if tensor.element_size() < 4 else parts[0]  # [...]
        for part in parts[1:]:
            total = total + part  # [...]
        return total.to(tensor.dtype)  # [...]

    def _gather(self, tensor: Any, sizes: list[int]) -> Any:
        if self.rank > 0:
            self.num_bytes += tensor.numel() * tensor.element_size()
            self._posted.append(self._group.send([tensor], 0, NUMBERS))
            self._flush()
            return tensor  # [N, size of this rank]
        parts = [tensor, *(tensor.new_empty(len(tensor), sizes[other]) for other in self.others)]  # each [N, size]
        for other in self.others:
            self._receive(parts[other], other)
        return torch.cat(parts, dim=1)  # [N, sum of sizes]

    def _from_leader(self, tensor: Any) -> Any:
        if self.rank > 0:
            self._receive(tensor, 0)
            return tensor  # [...]
        self._posted += [self._group.send([tensor], other, NUMBERS) for other in self.others]
        self._flush()
        return tensor  # [...]

    # ---- waiting

    @contextmanager
    def told(self) -> Iterator[None]:
        """What torch.distributed raises becomes Disconnected."""
        try:
            yield
        except RuntimeError as error:  # DistBackendError, DistNetworkError and others derive from it
            raise Disconnected(str(error).partition("\n")[0]) from error
        finally:
            self.waiting_since = None

    def _receive(self, tensor: Any, other: int) -> None:
        self.waiting_since = time.monotonic()
        self._group.recv([tensor], other, NUMBERS).wait()

    def _flush(self) -> None:
        """Wait until all that was posted has left."""
        while self._posted:
            self.waiting_since = time.monotonic()
            self._posted[-1].wait()
            self._posted.pop()
