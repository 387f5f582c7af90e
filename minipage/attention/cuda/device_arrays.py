"""Arrays of PyTorch, CuPy and numba (of NumPy in the simulator), as the kernels see them: flat, and never copied.

A row of K is found by its number, and one load brings 16 bytes of it, whatever they mean: `words` is an array's memory
as 32-bit words, `elements` as single numbers. bfloat16 is uint16 here, as in NumPy, which has no name for it.

Looking all this up takes longer than a launch. So whoever launches with the same array again and again makes a `view`
of it first, which remembers; `layout`, `words`, `elements` and every `launch_...` take a view as they take an array.
"""

from __future__ import annotations

import sys
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from minipage.attention.cuda.compat import SIMULATED, cuda, device_view
from minipage.errors import KernelArgumentError, require

Array = Any
TORCH_DTYPES = {"bfloat16": "uint16", "float8_e4m3fn": "uint8"}  # what NumPy calls otherwise


class Layout(NamedTuple):
    """Where an array's numbers are."""

    address: int  # of the first, in bytes
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # bytes
    dtype: np.dtype[Any]

    @property
    def span(self) -> int:
        """Bytes from the first number to the end of the last."""
        if 0 in self.shape:
            return 0
        return sum([(n - 1) * stride for n, stride in zip(self.shape, self.strides)]) + self.dtype.itemsize

    @property
    def num_contiguous(self) -> int:
        """How many of the last axes lie in memory as one piece."""
        if 0 in self.shape:
            return len(self.shape)
        expected = self.dtype.itemsize
        for count, (n, stride) in enumerate(zip(reversed(self.shape), reversed(self.strides))):
            if n != 1 and stride != expected:
                return count
            expected *= n
        return len(self.shape)


class Pinned(np.ndarray):
    """A NumPy array in page-locked memory, which the GPU reads and writes where it is."""


def pinned(shape: tuple[int, ...], dtype: Any) -> Pinned:
    """A new array of zeros in page-locked memory."""
    array: Pinned = cuda.pinned_array(shape, dtype).view(Pinned)
    array[...] = 0
    return array


def library(array: Array) -> str:
    """The name of the library that an array is of."""
    kind: Any = type(array)
    return _library(kind)


@cache
def _library(kind: Any) -> str:
    return kind.__module__.partition(".")[0]


class View:
    """An array, and what kernels have to know about it."""

    def __init__(self, array: Array) -> None:
        self.array = array

    @cached_property
    def layout(self) -> Layout:
        return _layout(self.array)

    @cached_property
    def words(self) -> Any:
        return _flat(self, np.dtype(np.uint32))

    @cached_property
    def elements(self) -> Any:
        dtype = self.layout.dtype
        return _flat(self, np.dtype(np.uint16) if dtype.itemsize == 2 else dtype)


def view(array: Array) -> View:
    return array if isinstance(array, View) else View(array)


def layout(array: Array) -> Layout:
    """Raises KernelArgumentError if it is no array that a kernel could read."""
    return view(array).layout


def words(array: Array) -> Any:
    """[number of words it spans] uint32; the last bytes, if they are less than a word, are left out."""
    return view(array).words


def elements(array: Array) -> Any:
    """[number of elements it spans]; elements of two bytes as uint16."""
    return view(array).elements


def _layout(array: Array) -> Layout:
    if isinstance(array, np.ndarray if SIMULATED else Pinned):
        return Layout(array.ctypes.data, array.shape, array.strides, array.dtype)
    if not SIMULATED and library(array) == "torch" and array.is_cuda:  # its interface knows no bfloat16
        dtype = numpy_dtype(array.dtype)
        size = dtype.itemsize
        return Layout(array.data_ptr(), tuple(array.shape), tuple([stride * size for stride in array.stride()]), dtype)
    interface = None if SIMULATED or library(array) == "torch" else getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise KernelArgumentError(
            f"got an array of {library(array)} that is not on the GPU. "
            + ("Simulated kernels take NumPy arrays." if SIMULATED else "Move it there: PyTorch, CuPy and numba can.")
        )
    dtype = np.dtype(interface["typestr"])
    shape = tuple(interface["shape"])
    strides = interface.get("strides") or tuple(
        dtype.itemsize * int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))
    )
    return Layout(interface["data"][0], shape, tuple(strides), dtype)


@cache
def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """Of one of PyTorch's."""
    name = str(dtype).removeprefix("torch.")
    return np.dtype(TORCH_DTYPES.get(name, name))


def is_writable(array: Array | None) -> bool:
    return bool(getattr(getattr(array, "flags", None), "writeable", True))


def check_devices(*arrays: Array | None) -> None:
    devices = sorted({device_of(array) for array in arrays if array is not None})
    require(len(devices) == 1, f"the arrays are on several devices, {', '.join(devices)}: move them to one.")


def check_rows(name: str, array: Array) -> None:
    """Raise KernelArgumentError unless a kernel can read q, or new K or V, of [num_tokens, num_heads, head_size]: whole
    words of 32 bits, and each token's numbers in one piece."""
    where = layout(array)
    stride = where.strides[0] if where.shape[0] > 1 else 0  # bytes from a token to the next
    require(
        where.num_contiguous >= 2 and stride >= 0,
        f"{name} is not contiguous in its last 2 axes, or runs backwards, so that its rows are not pieces of memory: "
        "copy it first.",
    )
    require(
        where.address % 4 == stride % 4 == where.span % 4 == 0,
        f"{name} is read in pieces of 4 bytes, but its address, the step from a token to the next, or its size in "
        "bytes is no multiple of that.",
    )


def in_shape(array: Array) -> Any:
    """A contiguous array in its own shape, for kernels; numbers of two bytes as uint16."""
    where = layout(array)
    dtype = np.dtype(np.uint16) if where.dtype.itemsize == 2 else where.dtype
    return array.view(dtype) if SIMULATED else _device_view(where.address, where.shape, dtype)


def _flat(view: View, dtype: np.dtype[Any]) -> Any:
    where = view.layout
    length = where.span // dtype.itemsize
    if SIMULATED:
        own = where.dtype.itemsize
        flat = np.lib.stride_tricks.as_strided(view.array, (length * dtype.itemsize // own,), (own,))
        return flat.view(dtype)
    return _device_view(where.address, (length,), dtype)


# A view is an address and a shape and nothing else, so it can be used again for whatever is there by then.
_device_view = lru_cache(maxsize=4096)(device_view)


def device_of(array: Array) -> str:
    """Which GPU an array is on; arrays of numba count as being on the current one."""
    if library(array) == "torch":
        return f"cuda:{array.device.index}"
    if library(array) == "cupy":
        return f"cuda:{array.device.id}"
    return "simulator" if SIMULATED else f"cuda:{cuda.get_current_device().id}"


def stream_of(array: Array) -> int:
    """The handle of the stream in which the array's library works now."""
    if library(array) == "torch":
        return int(sys.modules["torch"].cuda.current_stream(array.device).cuda_stream)
    if library(array) == "cupy":
        return int(sys.modules["cupy"].cuda.get_current_stream().ptr)
    return 0


def empty(like: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array of the same library on the same device; dtype is one of that library's, or a name."""
    if library(like) == "numba":
        return cuda.device_array(shape, dtype)
    xp = array_namespace(like)
    return xp.empty(shape, dtype=getattr(xp, dtype) if isinstance(dtype, str) else dtype, device=like.device)


def zeros(like: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """A new array of zeros of the same library on the same device."""
    if library(like) == "numba":
        return cuda.to_device(np.zeros(shape, dtype))
    xp = array_namespace(like)
    return xp.zeros(shape, dtype=getattr(xp, dtype), device=like.device)


def to_host(array: Array) -> np.ndarray:
    """A copy in NumPy, after all work on the array is done."""
    if library(array) == "torch":
        return np.asarray(array.cpu())
    if library(array) == "cupy":
        return np.asarray(array.get())
    return np.asarray(array if SIMULATED else array.copy_to_host())


def to_device(like: Array, values: np.ndarray) -> Array:
    """NumPy values in the library of another array, on its device."""
    if library(like) == "numba":
        return cuda.to_device(values)
    return array_namespace(like).asarray(values, device=like.device)
