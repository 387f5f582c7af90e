"""A faster engine for numba's CUDA simulator, with warps.

numba can run a CUDA kernel as plain Python (NUMBA_ENABLE_CUDASIM=1, set before numba is imported), one Python thread
for each CUDA thread. That finds errors with no GPU, but it takes milliseconds for each barrier, and knows no warp. Here
a CUDA thread is a greenlet: it runs until it waits for others, and then the next one runs, in a fixed order:

    threads   0: ......|      |....       a bar: waits at a barrier for the others of its warp, or of its block
              1:       |......|    ....
                                          when all of them wait (or have ended), they go on

One warp runs to the next barrier of the block before the next warp does.

It is a strict machine. Memory that nobody has written is poison: NaN, in whichever way it is read. An index below 0 or
past the end is an error, as is a barrier that some threads of a block pass and others never reach, and so is a race of
two threads in shared memory (shared_memory.py). What it cannot show is a race in the arrays that a kernel is given, of
two threads or two blocks: those run one by one.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.core import types
from numba.cuda.simulator.kernel import FakeCUDAKernel

from minipage.attention.cuda import compat
from minipage.ladder.shared_memory import SharedArray, Sharer

WARP_SIZE = 32
BLOCK = "the whole block"
POISON = 0x7FC07FC0  # NaN as one float32 or bfloat16s or fp16s, an absurd number as an integer


def install() -> None:
    """From now on, simulated kernels of this process run on this engine."""
    setattr(FakeCUDAKernel, "__call__", _launch)  # noqa: B010
    for name, value in vars(_Device).items():
        if not name.startswith("__"):
            setattr(cuda, name, value)
    for place in ("threadIdx", "block.blockIdx", "block.blockDim", "block.gridDim"):
        setattr(cuda, place.split(".")[-1], _dimensions(place))
    compat.warp_compute, compat.this_thread = _warp_compute, getcurrent


class GuardedArray:
    """An array as a kernel sees it: elements one by one, and no index outside."""

    __slots__ = ("array", "ndim")

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.ndim = array, array.ndim

    def _check(self, index: Any) -> None:
        """What NumPy allows: an index below 0 counts from the end, and one index too few is a row."""
        is_fine = min(index) >= 0 and len(index) == self.ndim if type(index) is tuple else index >= 0 and self.ndim == 1
        if not is_fine:
            raise outside(index, self.shape)

    def __getitem__(self, index: Any) -> Any:
        self._check(index)
        return self.array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check(index)
        self.array[index] = value

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __len__(self) -> int:
        return len(self.array)


class GuardedRow(GuardedArray):
    """The same of one dimension, as most arguments of kernels are: there is less to check."""

    __slots__ = ()

    def _check(self, index: Any) -> None:
        if index < 0:
            raise outside(index, self.shape)

    def __getitem__(self, index: Any) -> Any:
        if index < 0:
            raise outside(index, self.shape)
        return self.array[index]


def guarded(array: np.ndarray) -> GuardedArray:
    return GuardedRow(array) if array.ndim == 1 else GuardedArray(array)


class PoisonedRow:
    """Memory of a thread: it holds whatever was there before. Lists, because element by element they are several times
    faster than arrays."""

    __slots__ = ("kind", "numbers", "shape")

    def __init__(self, shape: tuple[int, ...], kind: Any, poison: Any) -> None:
        self.shape, self.kind = shape, kind
        self.numbers = [poison] * int(shape[0])

    def __getitem__(self, i: Any) -> Any:
        if i < 0:
            raise outside(i, self.shape)
        return self.numbers[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        if i < 0:
            raise outside(i, self.shape)
        self.numbers[i] = value if type(value) is self.kind else self.kind(value)

    def __len__(self) -> int:
        return len(self.numbers)


class PoisonedRows(PoisonedRow):
    """The same of two dimensions."""

    __slots__ = ()

    def __init__(self, shape: tuple[int, ...], kind: Any, poison: Any) -> None:
        self.shape, self.kind = shape, kind
        self.numbers = [[poison] * int(shape[1]) for _ in range(shape[0])]

    def __getitem__(self, index: Any) -> Any:
        i, j = index
        if i < 0 or j < 0:
            raise outside(index, self.shape)
        return self.numbers[i][j]

    def __setitem__(self, index: Any, value: Any) -> None:
        i, j = index
        if i < 0 or j < 0:
            raise outside(index, self.shape)
        self.numbers[i][j] = value if type(value) is self.kind else self.kind(value)


def poisoned(shape: Any, dtype: Any) -> Any:
    shape = shape if isinstance(shape, tuple) else (shape,)
    kind, poison = poison_of(dtype)
    if len(shape) > 2:
        return GuardedArray(np.full(shape, poison))
    return (PoisonedRow if len(shape) == 1 else PoisonedRows)(shape, kind, poison)


@cache
def poison_of(dtype: Any) -> tuple[Any, Any]:
    """(NumPy's type, what a number of it is that nobody has written)."""
    dtype = np.dtype(str(dtype) if isinstance(dtype, types.Type) else dtype)
    bits = np.dtype(f"u{min(4, dtype.itemsize)}")
    number = np.full(dtype.itemsize // bits.itemsize, POISON & (256**bits.itemsize - 1), bits).view(dtype)[0]
    return dtype.type, number


def outside(index: Any, shape: tuple[int, ...]) -> IndexError:
    return IndexError(f"index {index} is outside an array of shape {shape}")


# ---- one launch


class _XYZ(NamedTuple):
    x: int
    y: int = 1
    z: int = 1


class _Group:
    """Threads that wait for each other at barriers, and show each other values there: a warp, or a block."""

    def __init__(self, num_threads: int) -> None:
        self.shown: list[Any] = [None] * num_threads  # what those come with who wait; None from those who have ended
        self.seen: list[Any] = []  # what all came with to the last barrier
        self.answer: Any = None  # what was computed from that

    def pass_barrier(self) -> None:
        self.seen, self.shown, self.answer = self.shown, [None] * len(self.shown), None


class _Thread(Sharer, greenlet):
    """A CUDA thread, in one block of a launch after the other: greenlets cost more to begin than to go on with."""

    block: _Block
    warp: _Warp
    lane: int  # in its warp
    waits_for: str  # BLOCK, or something of its warp, or "" if it has ended

    def __init__(self, kernel: Callable[[], None], index: int, size: _XYZ) -> None:
        super().__init__(self._run_blocks)
        self.kernel, self.index = kernel, index  # in its block
        self.is_needed = True
        self.threadIdx = _XYZ(index % size.x, index // size.x % size.y, index // (size.x * size.y))

    def _run_blocks(self) -> None:
        while self.is_needed:
            self.begin_block()
            self.kernel()
            self.waits_for = ""
            self.parent.switch()


class _Warp(_Group):
    """Up to 32 threads that follow each other in a block."""

    def __init__(self, threads: list[_Thread]) -> None:
        super().__init__(WARP_SIZE)
        self.threads = threads  # that have not ended
        for lane, thread in enumerate(threads):
            thread.warp, thread.lane = self, lane

    def run(self) -> None:
        """To the next barrier of the block, or to the end."""
        while self.threads:
            self._run_to_a_barrier()
            self.threads = [thread for thread in self.threads if thread.waits_for]
            barriers = {thread.waits_for for thread in self.threads}
            if len(barriers) > 1:
                waits = ", others for ".join(sorted(barriers))
                raise RuntimeError(
                    f"some threads of a warp wait for {waits}: on a GPU for ever. (A barrier of some lanes, while "
                    "others do something else, may be right there, but is not simulated.)"
                )
            if barriers == {BLOCK}:
                return
            self.pass_barrier()

    def _run_to_a_barrier(self) -> None:
        try:
            for thread in self.threads:
                thread.switch()
        except Exception as error:
            error.add_note(f"in thread {thread.index} of block {tuple(thread.block.blockIdx)}")
            raise


class _Block(_Group):
    """The threads that share memory."""

    def __init__(self, threads: list[_Thread], index: _XYZ, size: _XYZ, grid: _XYZ) -> None:
        super().__init__(len(threads))
        self.blockIdx, self.blockDim, self.gridDim = index, size, grid
        self.shared: dict[tuple[str, int, int], Any] = {}
        for thread in threads:
            thread.block = self
        self.warps = [_Warp(threads[first : first + WARP_SIZE]) for first in range(0, len(threads), WARP_SIZE)]

    def run(self) -> None:
        """Warp by warp to each barrier of the block, which all pass who have not ended."""
        while any(warp.threads for warp in self.warps):
            for warp in self.warps:
                warp.run()
            self.pass_barrier()


def _launch(kernel: FakeCUDAKernel, *arguments: Any) -> None:
    seen = [guarded(a) if isinstance(a, np.ndarray) and a.ndim else a for a in arguments]
    grid, size = _XYZ(*(kernel.grid_dim or ())), _XYZ(*(kernel.block_dim or ()))
    threads = [_Thread(lambda: kernel.fn(*seen), i, size) for i in range(size.x * size.y * size.z)]
    with _no_collections():
        for x, y, z in np.ndindex(grid.x, grid.y, grid.z):
            _Block(threads, _XYZ(x, y, z), size, grid).run()
    for thread in threads:
        thread.is_needed = False
        thread.switch()


@contextmanager
def _no_collections() -> Iterator[None]:
    """A kernel makes objects by the thousand, and Python's garbage collector would look at them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# ---- what kernels call


def _dimensions(of: str) -> Any:
    """`cuda.threadIdx` and its like: each thread has its own."""

    def axis(name: str) -> property:
        get = attrgetter(f"{of}.{name}")
        return property(lambda self: get(getcurrent()))

    return type("Dimensions", (), {name: axis(name) for name in "xyz"})()


def _wait(barrier: str) -> None:
    thread = getcurrent()
    thread.waits_for = barrier
    thread.parent.switch()
    thread.pass_barrier(of_block=barrier == BLOCK)


def _exchange(value: Any) -> list[Any]:
    """The values that the lanes of the warp come with; None from those that have ended. No barrier for memory."""
    thread = getcurrent()
    warp = thread.warp
    warp.shown[thread.lane] = value
    thread.waits_for = "each other's values"
    thread.parent.switch()
    return warp.seen


def _exchange_in_block(value: Any) -> list[Any]:
    """The same of all threads of the block."""
    thread = getcurrent()
    thread.block.shown[thread.index] = value
    _wait(BLOCK)
    return thread.block.seen


def _warp_compute(value: Any, function: Callable[[list[Any]], Any]) -> Any:
    """function(what the lanes of the warp come with)[this lane]; the first that gets there computes it for all."""
    seen = _exchange(value)
    thread = getcurrent()
    if thread.warp.answer is None:
        thread.warp.answer = function(seen)
    return thread.warp.answer[thread.lane]


def _shuffle(value: Any, source: int) -> Any:
    values = _exchange(value)
    return values[source] if 0 <= source < WARP_SIZE and values[source] is not None else value


class _SharedMemory:
    @staticmethod
    def array(shape: Any, dtype: Any, alignment: int | None = None) -> Any:
        """One array for all threads of the block that come to this call."""
        caller = sys._getframe(1)
        arrays = getcurrent().block.shared
        place = caller.f_code.co_filename, caller.f_lineno, caller.f_lasti
        if place not in arrays:
            shape = shape if isinstance(shape, tuple) else (shape,)
            line = f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"
            arrays[place] = SharedArray(line, shape, *poison_of(dtype))
        return arrays[place]


class _LocalMemory:
    @staticmethod
    def array(shape: Any, dtype: Any) -> Any:
        return poisoned(shape, dtype)


class _Atomic:
    @staticmethod
    def add(array: GuardedArray | SharedArray, index: Any, value: Any) -> Any:
        if isinstance(array, SharedArray):
            return array.add(index, value)
        before = array[index]
        array[index] = before + value
        return before


class _Device:
    """Everything here becomes an attribute of numba.cuda."""

    local, shared, atomic = _LocalMemory, _SharedMemory, _Atomic
    syncthreads = staticmethod(lambda: _wait(BLOCK))
    syncthreads_or = staticmethod(lambda flag: int(any(_exchange_in_block(bool(flag)))))
    syncwarp = staticmethod(lambda mask=0xFFFFFFFF: _wait(f"lanes {mask:#x}"))
    shfl_sync = staticmethod(lambda mask, value, lane: _shuffle(value, lane % WARP_SIZE))
    shfl_xor_sync = staticmethod(lambda mask, value, bits: _shuffle(value, getcurrent().lane ^ bits))
    shfl_down_sync = staticmethod(lambda mask, value, delta: _shuffle(value, getcurrent().lane + delta))
    shfl_up_sync = staticmethod(lambda mask, value, delta: _shuffle(value, getcurrent().lane - delta))
    any_sync = staticmethod(lambda mask, flag: any(_exchange(bool(flag))))
    all_sync = staticmethod(lambda mask, flag: all(seen in (True, None) for seen in _exchange(bool(flag))))
    ballot_sync = staticmethod(
        lambda mask, flag: sum(1 << lane for lane, seen in enumerate(_exchange(bool(flag))) if seen)
    )
    popc = staticmethod(int.bit_count)
    threadfence = staticmethod(lambda: None)
