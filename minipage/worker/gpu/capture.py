"""Recording launches as a CUDA graph, with nothing in between that would spoil it.

While launches are recorded, CUDA permits nothing that has to wait for the GPU or changes what memory is there: with
"operation not permitted when stream is capturing" all is lost. What might do such a thing, and why it does not:

    kernels that are compiled or loaded   everything has been launched once before
    objects that the garbage collector    nothing is collected meanwhile: they may own memory, events, other graphs
      finds
    arrays of numba that end              numba keeps their memory until afterwards
    other threads                         what they do does not count ("thread_local"), and one records at a time
    PyTorch's own memory                  it comes from a pool of the graph's, without asking CUDA to wait
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any, TypeVar

import torch

from minipage.attention.cuda.compat import cuda
from minipage.worker.gc_off import gc_off

Result = TypeVar("Result")
one_at_a_time = RLock()  # PyTorch records everything in the same stream


def capture(run: Callable[[], Result], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph of what `run` launches, and what `run` returns, which each replay fills anew.

    pool: memory that several graphs share, a `torch.cuda.graph_pool_handle()`.

    If it fails, whatever raises, everything is as before: the current stream too, which PyTorch would leave changed.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    try:
        with recorded(graph, pool=pool):
            return graph, run()
    finally:
        torch.cuda.set_stream(stream)


@contextmanager
def recorded(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:
    """What is launched in this block becomes part of the graph; for options see torch.cuda.graph."""
    with (
        one_at_a_time,
        gc_off(),  # nothing is collected
        cuda.defer_cleanup(),
        torch.cuda.graph(graph, capture_error_mode="thread_local", **options),
    ):
        yield


class Graphs(dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, torch.Tensor]]):
    """Graphs of one kind by key, of which the number of rows comes first; each with what it writes. For the pool see
    `capture`."""

    def __init__(self, pool: Any) -> None:
        super().__init__()
        self._pool = pool
        self._failures = 0  # captures that failed
        self._steps_to_wait = 0  # until another one is tried

    def replayed(self, key: tuple[Any, ...], run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `run` computes, from its graph, which is captured if there is none."""
        if key not in self:
            launched = run()  # this compiles and loads what a graph cannot hold; what it writes is written again
            if not self._try_to_capture(key, run):
                return launched
        graph, result = self[key]
        graph.replay()
        return result

    def _try_to_capture(self, key: tuple[Any, ...], run: Callable[[], torch.Tensor]) -> bool:
        """Whether there is a graph now. After a failure the next steps do without, twice as many each time."""
        if self._steps_to_wait > 0:
            self._steps_to_wait -= 1
            return False
        try:
            self[key] = capture(run, self._pool)
        except Exception as error:  # PyTorch's, numba's, or CUDA's own
            if self._failures == 0:
                warnings.warn(
                    f"a CUDA graph for {key[0]} sequences could not be captured, so kernels are launched one by one, "
                    f"which is slower; it will be tried again. ({type(error).__name__}: {error})",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._failures += 1
            self._steps_to_wait = 2 ** min(self._failures, 10)
            return False
        return True
