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
