"""numba.cuda in its two forms, and everything that depends on which versions of it are installed.

a device       numba-cuda compiles the kernels; arrays are on the GPU (PyTorch, CuPy, numba: whoever shares them by
               `__cuda_array_interface__`)
the simulator  NUMBA_ENABLE_CUDASIM=1, set before numba is imported: kernels run as Python; arrays are NumPy's
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from functools import cache, lru_cache, partial
from itertools import chain
from types import SimpleNamespace
from typing import Any, NamedTuple

import numba
import numpy as np

from minipage.errors import ConfigurationError, KernelArgumentError

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
    from cuda.core import LaunchConfig, Stream, launch  # type: ignore[import-not-found]
    from numba.cuda import types
    from numba.cuda.core import config as cuda_config

    # Otherwise every launch waits for whichever stream an argument's library uses. We launch in that stream.
    cuda_config.CUDA_ARRAY_INTERFACE_SYNC = 0
    cuda_config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small batch is no mistake

MOST_SHARED = 48 * 1024  # bytes of shared memory that a block has without having been asked for

__all__ = [
    "SIMULATED",
    "can_overlap",
    "cuda",
    "device_function",
    "device_view",
    "external_stream",
    "has_room_to_share",
    "has_warpgroups",
    "kernel",
    "num_processors",
    "size_in_kernel",
    "types",
    "upload",
]


def kernel(
    function: Callable[..., None], fastmath: bool = True, overlaps: bool = False, shared_bytes: int = 0, **options: Any
) -> Any:
    """Compile for the GPU when first launched: `kernel(f)[grid, block, stream](*arguments)`.

    fastmath: arithmetic may be reordered, divided and flushed to zero approximately. Never with infinities.
    overlaps: it may begin before the kernel before it has ended, where the GPU can do that; see ptx.order_of_kernels.
    shared_bytes: of a block's array in shared memory, of which the kernel says only `size_in_kernel`.
    """
    if SIMULATED:
        return cuda.jit(function)
    return Launcher(cuda.jit(fastmath=fastmath, **options)(function), overlaps and can_overlap(), shared_bytes)


def size_in_kernel(num_words: int) -> int:
    """What a kernel says of an array in shared memory: CUDA wants to hear of one above 48 KiB in the launch instead."""
    return num_words if SIMULATED or 4 * num_words <= MOST_SHARED else 0


@cache
def can_overlap() -> bool:
    """Whether a kernel may begin before the last one has ended, and wait for that itself (compute capability 9.0)."""
    return (
        not SIMULATED
        and cuda.is_available()
        and hasattr(LaunchConfig, "programmatic_stream_serialization")
        and bool(cuda.get_current_device().compute_capability >= (9, 0))
    )


@cache
def has_warpgroups() -> bool:
    """Whether tensor cores read shared memory themselves, by `wgmma`: compute capability 9.0, and no other."""
    return not SIMULATED and cuda.is_available() and cuda.get_current_device().compute_capability == (9, 0)


@cache
def converts_fp8() -> bool:
    """Whether the GPU has an instruction that makes fp16 of fp8."""
    return not SIMULATED and cuda.is_available() and bool(cuda.get_current_device().compute_capability >= (8, 9))


class Argument(NamedTuple):
    """What a kernel is told of an array, or of a number."""

    dtype: str
    ndim: int  # of an array, which is contiguous; 0: a number
    numbers: tuple[Any, ...]  # whole ones of 64 bits, unless ctypes says otherwise

    @property
    def kind(self) -> Any:
        number = getattr(types, self.dtype)
        return types.Array(number, self.ndim, "C") if self.ndim else number


def as_argument(value: Any) -> Argument:
    if isinstance(value, Argument):
        return value
    if isinstance(value, int):
        return Argument("int64", 0, (value,))
    if isinstance(value, np.generic):
        return Argument(value.dtype.name, 0, (ctype(value.dtype)(value.item()),))
    if not getattr(value, "is_c_contiguous", bool)():
        raise KernelArgumentError(f"a kernel was given {type(value).__name__}; it takes views, numbers and `upload`s.")
    return device_view(value.device_ctypes_pointer.value or 0, value.shape, value.dtype)  # of `upload`


ctype = cache(np.ctypeslib.as_ctypes_type)


class Launcher:
    """A kernel of numba, launched by what numba itself launches with. numba would look at each argument anew, for
    longer than the GPU takes for a small kernel, and has no way to say that kernels may overlap (NVIDIA's "programmatic
    dependent launch")."""

    def __init__(self, dispatcher: Any, overlaps: bool, shared_bytes: int) -> None:
        self.dispatcher = dispatcher
        self.shared_bytes = shared_bytes if shared_bytes > MOST_SHARED else 0
        self.options: dict[str, Any] = {"programmatic_stream_serialization": True} if overlaps else {}
        if self.shared_bytes:
            self.options["shmem_size"] = self.shared_bytes
        # NOTE: by the kinds of arguments alone. A process that launches on several GPUs must have them of one compute
        # capability; so does what is asked of a GPU once, below. To ask with each launch which one is current would
        # cost every launch time on the host, and CUDA refuses machine code of another capability with an error.
        self.compiled: dict[tuple[Any, ...], Any] = {}
        self.config = lru_cache(maxsize=1024)(self._config)

    def __getitem__(self, where: tuple[Any, ...]) -> Callable[..., None]:
        grid, block, *stream = where
        return partial(self._launch, grid, block, *(stream or [external_stream(0)]))

    def _launch(self, grid: Any, block: Any, stream: Any, *values: Any) -> None:
        arguments = [as_argument(value) for value in values]
        kinds = tuple([argument[:2] for argument in arguments])
        kernel = self.compiled.get(kinds) or self._compile(kinds, [argument.kind for argument in arguments])
        numbers = chain.from_iterable([argument.numbers for argument in arguments])
        launch(stream, self.config(grid, block), kernel, *numbers)

    def _config(self, grid: Any, block: Any) -> Any:
        return LaunchConfig(grid=grid, block=block, **self.options)

    def _compile(self, kinds: tuple[Any, ...], numba_kinds: list[Any]) -> Any:
        compiled = self.dispatcher.compile(tuple(numba_kinds))._codelibrary.get_cufunc()
        if self.shared_bytes:
            permit_to_share(compiled, self.shared_bytes)
        self.compiled[kinds] = compiled.kernel
        return self.compiled[kinds]


def permit_to_share(compiled: Any, num_bytes: int) -> None:
    from numba.cuda.cudadrv.driver import binding, driver  # type: ignore[attr-defined]

    attribute = binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.cuKernelSetAttribute(attribute, num_bytes, compiled.handle, compiled.device.id)


def device_function(function: Callable[..., Any], fastmath: bool = True) -> Any:
    """A function for kernels to call; it becomes part of them, so that its local arrays can be registers."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True, fastmath=fastmath)(function)


def warp_compute(value: Any, function: Callable[[list[Any]], Any]) -> Any:
    """In the simulator only (see ladder/simulator.py): function(the 32 lanes' values)[this lane]."""
    raise NotImplementedError


def this_thread() -> Any:
    """In the simulator only: what a thread has to do with shared memory, a `Sharer` of ladder/shared_memory.py."""
    raise NotImplementedError


@cache
def num_processors() -> int:
    """How many multiprocessors the GPU has; in the simulator few, so that blocks have more than one thing to do."""
    return 1 if SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


@cache
def has_room_to_share(num_bytes: int) -> bool:
    """Whether a block can have this much shared memory."""
    return not SIMULATED and num_bytes <= int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)


@cache
def external_stream(handle: int) -> Any:
    """A stream that another library made, such as `torch.cuda.current_stream().cuda_stream`; 0 is the default one."""
    return 0 if SIMULATED else Stream.from_handle(handle)


def upload(values: np.ndarray, stream: Any) -> Any:
    """A copy on the GPU, made in that stream, for kernels launched in it afterwards."""
    return values if SIMULATED else cuda.to_device(values, stream=stream)


def device_view(address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Argument:
    """Memory that the GPU can reach as a contiguous array for kernels. Whoever owns it must keep it."""
    strides = [dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # As numba passes an array: two pointers that nobody uses, then what it is.
    return Argument(dtype.name, len(shape), (0, 0, math.prod(shape), dtype.itemsize, address, *shape, *strides))
