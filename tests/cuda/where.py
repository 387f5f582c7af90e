"""Where the CUDA kernels run in this session of tests, and the versions of `paged_attention` to test."""

import importlib.util
import os
from functools import cache

import numpy as np
import pytest
from machine_code import why_not

SIMULATOR, DEVICE = (os.environ.get("MINIPAGE_TEST_CUDA") == where for where in ("simulator", "device"))
CUDA = SIMULATOR or DEVICE


def long(*values):
    """A case that takes the simulator seconds, and a GPU no time: there it is marked slow."""
    return pytest.param(*values, marks=pytest.mark.slow if SIMULATOR else ())


def takes_long(test):
    """The same of a whole test."""
    return pytest.mark.slow(test) if SIMULATOR else test


@cache
def device_name() -> str:
    """The GPU that is here, or ''."""
    if importlib.util.find_spec("numba_cuda") is None:
        return ""
    from minipage.attention.cuda.compat import cuda

    return cuda.get_current_device().name if cuda.is_available() else ""


def description(where: str) -> str:
    """A line for the report."""
    kernels = f"device, {device_name()}" if where == "device" or (where == "auto" and device_name()) else "simulator"
    code = f"not looked at, because {why_not()}" if why_not() else "checked for compute capability 8.0 and 9.0"
    return f"CUDA kernels: {kernels}. Machine code of CUDA kernels: {code}."


def on_gpu(array):
    """A NumPy array where the kernels can read it, laid out in the same way."""
    if not isinstance(array, np.ndarray) or SIMULATOR:
        return array
    import cupy

    cupy.cuda.set_allocator(None)  # each array its own memory, so that compute-sanitizer sees where it ends
    flips = tuple(slice(None, None, -1) if stride < 0 else slice(None) for stride in array.strides)
    return cupy.asarray(array[flips])[flips]


def from_gpu(array):
    return array if isinstance(array, np.ndarray) else array.get()


def through_gpu(function):
    """The function, for NumPy arrays: they go to the GPU, and the answer comes back."""

    def call(*args, **kwargs):
        out = function(*map(on_gpu, args), **{name: on_gpu(value) for name, value in kwargs.items()})
        return None if out is None else from_gpu(out)

    return call


def _versions():
    if not CUDA:
        from minipage.attention import cpu, loops, reference

        kernels = {"reference": reference, "loops": loops, "cpu": cpu}
        return {name: kernel.paged_attention for name, kernel in kernels.items()}
    from minipage.attention import cuda

    return {"cuda": through_gpu(cuda.paged_attention)}


VERSIONS = _versions()
versions = pytest.mark.parametrize("paged_attention", VERSIONS.values(), ids=VERSIONS.keys())
only_cpu = pytest.mark.skipif(CUDA, reason="CUDA kernels compute in float32")
