"""A faster engine for numba's CUDA simulator, with warps.

numba can run a CUDA kernel as plain Python (NUMBA_ENABLE_CUDASIM=1, set before numba is imported), one Python thread
for each CUDA thread. That finds errors with no GPU, but it takes milliseconds for each barrier, and knows no warp. Here
a CUDA thread is a greenlet: it runs until it waits for others, and then the next one runs, in a fixed order:

    threads   0: ......|      |....       a bar: waits at a barrier for the others of its warp, or of its block
              1:       |......|    ....
                                          when all of them wait (or have ended), they go on

It is a strict machine. Memory that nobody has written is poison: NaN, in whichever way it is read. An index below 0 or
past the end is an error, as is a barrier that some threads of a block pass and others never reach. What it cannot show
is a race: threads take turns only at barriers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.core import types
from numba.cuda.simulator.kernel import FakeCUDAKernel

from minipage.attention.cuda import compat

WARP_SIZE = 32
POISON = 0x7FC07FC0  # NaN as one float32 or bfloat16s or fp16s, an absurd number as an integer


def install() -> None:
    """From now on, simulated kernels of this process run on this engine."""
    setattr(FakeCUDAKernel, "__call__", _launch)  # noqa: B010
    for name, value in vars(_Device).items():
        if not name.startswith("__"):
            setattr(cuda, name, value)
    for dimensions in ("threadIdx", "blockIdx", "blockDim", "gridDim"):
        setattr(cuda, dimensions, _Dimensions(dimensions))
    compat.warp_compute = _warp_compute


class GuardedArray:
    """An array as a kernel sees it: elements one by one, and no index outside."""

    __slots__ = ("array", "ndim")

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.ndim = array, array.ndim

    def _check(self, index: Any) -> None:
        """What NumPy allows: an index below 0 counts from the end, and one index too few is a row."""
        is_fine = min(index) >= 0 and len(index) == self.ndim if type(index) is tuple else index >= 0 and self.ndim == 1
        if not is_fine:
            raise IndexError(f"index {index} is outside an array of shape {self.array.shape}")

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


def poisoned(shape: Any, dtype: Any) -> np.ndarray:
    """An array as the hardware hands it out: whatever was there before."""
    array = np.empty(shape, dtype)
    bits = np.dtype(f"u{min(4, array.itemsize)}")
    array.view(bits)[...] = POISON & (256**bits.itemsize - 1)
    return array


# ---- one launch


class _Thread(greenlet):
    """One CUDA thread."""

    block: _Block
    index: int  # in its block
    waits_for: str  # "nothing", "warp", "block" or "never": it has ended


class _Block:
    """The threads that share memory and barriers."""

    def __init__(self, function: Callable[..., None], arguments: list[Any], dimensions: dict[str, SimpleNamespace]):
        self.dimensions = dimensions
        self.shared: dict[tuple[str, int], np.ndarray] = {}
        size = dimensions["blockDim"]
        self.values: list[Any] = [None] * (size.x * size.y * size.z)  # what threads show each other
        self.answers: dict[int, Any] = {}  # what a warp has computed together, until all its lanes have read it
        self.threads = []
        for index in range(len(self.values)):
            thread = _Thread(lambda: function(*arguments))
            thread.block, thread.index, thread.waits_for = self, index, "nothing"
            thread.threadIdx = _xyz(index % size.x, index // size.x % size.y, index // (size.x * size.y))
            self.threads.append(thread)

    def run(self) -> None:
        running = self.threads
        while running:
            for thread in running:
                self._switch_to(thread)
            running = self._released()

    def _switch_to(self, thread: _Thread) -> None:
        try:
            thread.switch()
        except Exception as error:
            where = {name: tuple(vars(d).values()) for name, d in self.dimensions.items() if name == "blockIdx"}
            error.add_note(f"in thread {thread.index} of block {where['blockIdx']}")
            raise
        if thread.dead:
            thread.waits_for = "never"

    def _released(self) -> list[_Thread]:
        """The threads that may go on, now that all wait."""
        alive = [thread for thread in self.threads if thread.waits_for != "never"]
        if all(thread.waits_for == "block" for thread in alive):
            return alive
        released = []
        for first in range(0, len(self.threads), WARP_SIZE):
            warp = [t for t in self.threads[first : first + WARP_SIZE] if t.waits_for != "never"]
            if all(thread.waits_for == "warp" for thread in warp):
                released += warp
        if not released:
            raise RuntimeError("some threads wait for their warp, and others of it for the whole block: for ever")
        return released


def _launch(kernel: FakeCUDAKernel, *arguments: Any) -> None:
    guarded = [GuardedArray(a) if isinstance(a, np.ndarray) and a.ndim else a for a in arguments]
    grid, size = _xyz(*(kernel.grid_dim or ())), _xyz(*(kernel.block_dim or ()))
    for x, y, z in np.ndindex(grid.x, grid.y, grid.z):
        dimensions = dict(blockIdx=_xyz(x, y, z), blockDim=size, gridDim=grid)
        _Block(kernel.fn, guarded, dimensions).run()


def _xyz(x: int, y: int = 1, z: int = 1) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y, z=z)


# ---- what kernels call


class _Dimensions:
    """`cuda.threadIdx` and its like: each thread has its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, axis: str) -> int:
        thread = getcurrent()
        dimensions = thread.threadIdx if self.name == "threadIdx" else thread.block.dimensions[self.name]
        return int(getattr(dimensions, axis))


def _wait(kind: str) -> None:
    thread = getcurrent()
    thread.waits_for = kind
    thread.parent.switch()
    thread.waits_for = "nothing"


def _exchange(kind: str, value: Any) -> list[Any]:
    """The values that all threads of the warp, or of the block, come with; None from those that have ended."""
    thread = getcurrent()
    values = thread.block.values
    values[thread.index] = value
    _wait(kind)
    first = thread.index // WARP_SIZE * WARP_SIZE
    seen = values[first : first + WARP_SIZE] if kind == "warp" else values[:]
    _wait(kind)
    values[thread.index] = None
    return seen


def _warp_compute(value: Any, function: Callable[[list[Any]], Any]) -> Any:
    """function(what the lanes of the warp come with)[this lane]; the first that gets there computes it for all."""
    thread = getcurrent()
    answers, warp = thread.block.answers, thread.index // WARP_SIZE
    seen = _exchange("warp", value)
    if warp not in answers:
        answers[warp] = function(seen)
    answer = answers[warp][_lane()]
    _wait("warp")
    answers.pop(warp, None)
    return answer


def _lane() -> int:
    return int(getcurrent().index % WARP_SIZE)


def _shuffle(value: Any, source: int) -> Any:
    values = _exchange("warp", value)
    return values[source] if 0 <= source < WARP_SIZE and values[source] is not None else value


class _SharedMemory:
    @staticmethod
    def array(shape: Any, dtype: Any) -> GuardedArray:
        """One array for all threads of the block that come to this line."""
        caller = sys._getframe(1)
        arrays = getcurrent().block.shared
        place = caller.f_code.co_filename, caller.f_lineno
        if place not in arrays:
            arrays[place] = poisoned(shape, _numpy_dtype(dtype))
        return GuardedArray(arrays[place])


class _LocalMemory:
    @staticmethod
    def array(shape: Any, dtype: Any) -> GuardedArray:
        return GuardedArray(poisoned(shape, _numpy_dtype(dtype)))


class _Atomic:
    @staticmethod
    def add(array: GuardedArray, index: Any, value: Any) -> Any:
        before = array[index]
        array[index] = before + value
        return before


def _numpy_dtype(dtype: Any) -> np.dtype:
    return np.dtype(str(dtype)) if isinstance(dtype, types.Type) else np.dtype(dtype)


class _Device:
    """Everything here becomes an attribute of numba.cuda."""

    local, shared, atomic = _LocalMemory, _SharedMemory, _Atomic
    syncthreads = staticmethod(lambda: _wait("block"))
    syncthreads_or = staticmethod(lambda flag: int(any(_exchange("block", bool(flag)))))
    syncwarp = staticmethod(lambda mask=0xFFFFFFFF: _wait("warp"))
    shfl_sync = staticmethod(lambda mask, value, lane: _shuffle(value, lane % WARP_SIZE))
    shfl_xor_sync = staticmethod(lambda mask, value, bits: _shuffle(value, _lane() ^ bits))
    shfl_down_sync = staticmethod(lambda mask, value, delta: _shuffle(value, _lane() + delta))
    shfl_up_sync = staticmethod(lambda mask, value, delta: _shuffle(value, _lane() - delta))
    any_sync = staticmethod(lambda mask, flag: any(_exchange("warp", bool(flag))))
    all_sync = staticmethod(lambda mask, flag: all(seen in (True, None) for seen in _exchange("warp", bool(flag))))
    ballot_sync = staticmethod(
        lambda mask, flag: sum(1 << lane for lane, seen in enumerate(_exchange("warp", bool(flag))) if seen)
    )
    popc = staticmethod(int.bit_count)
    threadfence = staticmethod(lambda: None)
