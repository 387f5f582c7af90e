"""numba.cuda in its two forms, and everything that depends on which versions of it are installed.

a device       numba-cuda compiles the kernels; arrays are on the GPU (PyTorch, CuPy, numba: whoever shares them by
               `__cuda_array_interface__`)
the simulator  NUMBA_ENABLE_CUDASIM=1, set before numba is imported: kernels run as Python; arrays are NumPy's
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np

from minipage.errors import ConfigurationError

SIMULATED = bool(getattr(numba.config, "ENABLE_CUDASIM"))  # noqa: B009  (unknown to type checkers)

if not SIMULATED and importlib.util.find_spec("numba_cuda") is None:
    raise ConfigurationError(
        "the CUDA kernels need numba-cuda: pip install 'minipage[cuda13]' (or [cuda12], as your driver wants), "
        "or set NUMBA_ENABLE_CUDASIM=1 to run them in numba's simulator."
    )
if not hasattr(np, "row_stack"):
    np.row_stack = np.vstack  # numba-cuda 0.30 asks for it, NumPy 2.5 has dropped it

from numba import cuda as numba_cuda  # noqa: E402

cuda: Any = numba_cuda  # what kernels can do with it is not known to type checkers
types: Any

if SIMULATED:
    from numba.core import types as numba_types

    # Kernels convert a number by calling its type, which NumPy's do many times faster than numba's.
    names = "float32", "int8", "int32", "uint8", "uint16", "uint32"
    types = SimpleNamespace(**vars(numba_types) | {name: getattr(np, name) for name in names})
else:
    from cuda.core import LaunchConfig, launch  # type: ignore[import-not-found]
    from numba.cuda import types
    from numba.cuda.core import config as cuda_config

    # Otherwise every launch waits for whichever stream an argument's library uses. We launch in that stream.
    cuda_config.CUDA_ARRAY_INTERFACE_SYNC = 0
    cuda_config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small batch is no mistake

__all__ = [
    "SIMULATED",
    "can_overlap",
    "cuda",
    "device_function",
    "device_view",
    "external_stream",
    "kernel",
    "num_processors",
    "types",
    "upload",
]


def kernel(function: Callable[..., None], fastmath: bool = True, overlaps: bool = False, **options: Any) -> Any:
    """Compile for the GPU when first launched: `kernel(f)[grid, block, stream](*arguments)`.

    fastmath: arithmetic may be reordered, divided and flushed to zero approximately. Never with infinities.
    overlaps: it may begin before the kernel before it has ended, where the GPU can do that; see ptx.order_of_kernels.
    """
    if SIMULATED:
        return cuda.jit(function)
    compiled = cuda.jit(fastmath=fastmath, **options)(function)
    return Overlapping(compiled) if overlaps and can_overlap() else compiled


@cache
def can_overlap() -> bool:
    """Whether a kernel may begin before the last one has ended, and wait for that itself (compute capability 9.0)."""
    return (
        not SIMULATED
        and cuda.is_available()
        and hasattr(LaunchConfig, "programmatic_stream_serialization")
        and bool(cuda.get_current_device().compute_capability >= (9, 0))
    )


class Overlapping:
    """A kernel of numba, launched so that it may begin before the last one has ended. numba itself has no way to say
    so, but what it launches with has: NVIDIA's "programmatic dependent launch"."""

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher

    def __getitem__(self, where: tuple[Any, ...]) -> Callable[..., None]:
        return partial(self._launch, self.dispatcher[where])

    def _launch(self, where: Any, *arguments: Any) -> None:
        kinds = tuple([self.dispatcher.typeof_pyval(argument) for argument in arguments])
        compiled = self.dispatcher.overloads.get(kinds) or self.dispatcher.compile(kinds)
        numbers: list[Any] = []  # an array is several
        for kind, argument in zip(kinds, arguments):
            compiled._prepare_args(kind, argument, where.stream, [], numbers)
        config = LaunchConfig(grid=where.griddim, block=where.blockdim, programmatic_stream_serialization=True)
        launch(where.stream, config, compiled._codelibrary.get_cufunc().kernel, *numbers)


def device_function(function: Callable[..., Any], fastmath: bool = True) -> Any:
    """A function for kernels to call; it becomes part of them, so that its local arrays can be registers."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True, fastmath=fastmath)(function)


def warp_compute(value: Any, function: Callable[[list[Any]], Any]) -> Any:
    """In the simulator only (see ladder/simulator.py): function(the 32 lanes' values)[this lane]."""
    raise NotImplementedError


@cache
def num_processors() -> int:
    """How many multiprocessors the GPU has; in the simulator few, so that blocks have more than one thing to do."""
    return 1 if SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


def external_stream(handle: int) -> Any:
    """A stream that another library made, such as `torch.cuda.current_stream().cuda_stream`; 0 is the default one."""
    return 0 if SIMULATED or handle == 0 else cuda.external_stream(handle)


def upload(values: np.ndarray, stream: Any) -> Any:
    """A copy on the GPU, made in that stream, for kernels launched in it afterwards."""
    return values if SIMULATED else cuda.to_device(values, stream=stream)


def device_view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Memory that the GPU can reach as a contiguous array for kernels. Whoever owns it must keep it."""
    return cuda.as_cuda_array(_Memory(address, shape, dtype), sync=False)


class _Memory:
    """The form in which array libraries hand each other memory."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": shape, "typestr": dtype.str, "strides": None, "version": 3,
        }  # fmt: skip
