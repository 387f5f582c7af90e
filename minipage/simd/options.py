"""How numba compiles the loops over K and V, where the machine code is kept, and who may run it when.

    @compiled            one thread runs it; what other kernels call
    @compiled_parallel   its `prange` loops are shared among threads
    @kept_on_disk        for any other function of `numba.njit`: keep its machine code, but never that of older source

With NUMBA_DISABLE_JIT=1 nothing is compiled: kernels are Python then, for a debugger to step through.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any

import numba
import numpy as np
from numba import threading_layer  # type: ignore[attr-defined]
from numba.core.caching import FunctionCache, IndexDataCacheFile

# Threads that wait for work should sleep, but not at once: to wake one takes about 75 us. By default GNU OpenMP lets
# them spin for long, and they take the cores from others that compute (NumPy's threads, too): on two busy cores, steps
# were measured ten times slower. Two thousand turns are about 50 us, in which a norm or a gate of a few rows is done.
# Both are read at the first call.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# Sums may be reordered (that is what lets them use vector instructions) and multiplications fused with additions;
# infinities must keep their meaning, because `highest` starts at one.
# Other threads go on meanwhile: a server answers while a step is computed.
options: Any = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "nogil": True}
# Only the loops that say `prange` should be shared among the threads, not every NumPy expression too.
expressions = ["comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil"]

# The files whose code becomes part of kernels in other files; an edit of one of them changes those too.
SHARED_FILES = (
    "simd/options.py", "simd/vectors.py", "simd/matrix.py", "simd/pairs.py", "simd/bfloat16.py",
    "attention/decode.py", "model/layers/passes.py", "model/layers/compiled.py",
)  # fmt: skip


IN_PYTHON = bool(getattr(numba.config, "DISABLE_JIT"))  # noqa: B009  (unknown to type checkers)
# Machine code says nothing of numbers that become infinite, but NumPy warns of them.
silently: Any = np.errstate(all="ignore")


def compiled(function: Callable[..., Any]) -> Any:
    return silently(function) if IN_PYTHON else kept_on_disk(numba.njit(**options)(function))


def compiled_parallel(function: Callable[..., Any]) -> Any:
    """Kernels of several Python threads run one after the other: they want the same cores, and numba's workqueue, which
    it uses where there is no OpenMP, ends the process when it is entered twice. In a forked process, whose threads did
    not come along, one thread runs the same loops."""
    if IN_PYTHON:
        return silently(function)
    parallel: Any = dict.fromkeys(expressions, False)
    shared = kept_on_disk(numba.njit(**options, parallel=parallel)(function))
    alone = kept_on_disk(numba.njit(**options)(function), "alone")  # compiled only if it is ever called

    @wraps(function)
    def kernel(*arguments: Any) -> Any:
        if threads.are_lost:
            return alone(*arguments)
        with threads.lock:
            return shared(*arguments)

    kernel.stats = shared.stats  # type: ignore[attr-defined]  # says where the machine code is kept
    return kernel


class Threads:
    """numba's threads, of which a process has one set. GNU OpenMP ends a forked process that tries to use them."""

    def __init__(self) -> None:
        self.lock = RLock()  # reentrant, because a signal handler may interrupt whoever has it
        self.are_lost = False

    def after_fork(self) -> None:
        """In the new process."""
        self.lock = RLock()  # a thread that is not here may have had the old one
        with suppress(ValueError):  # no thread has been started yet
            self.are_lost = self.are_lost or threading_layer() == "omp"


threads = Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=threads.after_fork)


def kept_on_disk(dispatcher: Any, variant: str = "") -> Any:
    """What `numba.njit(cache=True)` does, with three differences: an edit of any kernel file counts; without a place to
    write there is no cache, instead of no kernel; and a damaged cache is as good as none.

    variant: tells apart two ways of compiling one function.
    """
    if hasattr(dispatcher, "py_func"):  # with NUMBA_DISABLE_JIT it is the function itself
        try:
            dispatcher._cache = KernelCache(dispatcher.py_func, variant)
        except RuntimeError:  # numba finds no folder
            warn_once()
    return dispatcher


class KernelCache(FunctionCache):
    """numba's cache of one function. By itself it asks only whether the function's own file has changed."""

    def __init__(self, function: Callable[..., Any], variant: str) -> None:
        super().__init__(function)
        name = f"{self._impl.filename_base}{variant}"
        self._cache_file = IndexDataCacheFile(self._cache_path, name, stamp(function.__code__.co_filename))

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception:  # whatever unpickling a damaged file raises
            self.save(self.flush)
            return None

    def save_overload(self, *arguments: Any) -> None:
        self.save(super().save_overload, *arguments)

    def save(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except OSError:
            warn_once()


@cache
def stamp(file: str) -> str:
    """Changes whenever this file, or one of SHARED_FILES, does."""
    package = Path(__file__).parents[1]
    files = [Path(file), *(package / name for name in SHARED_FILES)]
    return "minipage " + sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


@cache
def warn_once() -> None:
    warnings.warn(
        "the machine code of minipage's kernels cannot be kept on disk, so every process compiles them anew, which "
        "takes up to a minute: set NUMBA_CACHE_DIR to a folder that can be written to.",
        RuntimeWarning,
        stacklevel=2,
    )
