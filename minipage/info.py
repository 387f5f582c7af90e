"""`python -m minipage info`: versions, devices, caches, and the sizes of the shipped model.

Each function yields (name, value) pairs, printed as they come; nothing large is imported only to ask for its version.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numba

from minipage import __version__
from minipage.attention import cpu
from minipage.model.weights import SHIPPED_MODEL, find_folder, read_config, read_json


def print_info() -> None:
    for facts in (version_facts(), cpu_facts(), model_facts()):
        for name, value in facts:
            print(f"{name:<18}{value}", flush=True)


def version_facts() -> Iterator[tuple[str, str]]:
    yield "minipage", __version__
    yield "python", f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}"
    for package in ("numpy", "numba", "torch"):
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed" + (" (not needed)" if package == "torch" else "")


def cpu_facts() -> Iterator[tuple[str, str]]:
    yield "CPUs", f"{os.cpu_count()}, of which numba uses {numba.get_num_threads()}"
    yield "threading layer", threading_layer()
    for folder in {kernel.stats.cache_path for kernel in vars(cpu).values() if hasattr(kernel, "stats")}:
        size = sum(file.stat().st_size for pattern in ("*.nbi", "*.nbc") for file in Path(folder).glob(pattern))
        yield "compiled kernels", f"{size:,} bytes in {folder}"
    yield "CUDA GPU", cuda_gpu()


def threading_layer() -> str:
    """The first of numba's that can be loaded, in the order in which numba itself tries them."""
    for layer in numba.config.THREADING_LAYER_PRIORITY:  # type: ignore[attr-defined]
        try:
            import_module(f"numba.np.ufunc.{'workqueue' if layer == 'workqueue' else layer + 'pool'}")
        except ImportError:
            continue
        return str(layer)
    return "none"


def cuda_gpu() -> str:
    """Ask the driver itself, which takes a moment, rather than import a library that takes seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "none: there is no NVIDIA driver"
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "none that the driver can see"
    name = ctypes.create_string_buffer(100)
    driver.cuDeviceGetName(name, len(name), 0)
    return f"{count.value} x {name.value.decode(errors='replace')} (not yet used)"


def model_facts() -> Iterator[tuple[str, str]]:
    folder = find_folder(SHIPPED_MODEL)
    config = read_config(read_json(folder / "config.json"), folder)
    parameters = sum(math.prod(shape) for shape in config.weight_shapes().values())
    yield "shipped model", f"{SHIPPED_MODEL}, {sum(file.stat().st_size for file in folder.iterdir()):,} bytes"
    yield "", f"{parameters:,} parameters, {config.vocab_size:,} words, a context of {config.n_positions} tokens"
    yield "", f"{config.n_layer} layers, {config.n_head} heads of {config.head_size}"
    per_token = 2 * config.n_layer * config.n_embd * 4
    yield "KV cache", f"{per_token:,} bytes per token (K and V, {config.n_layer} layers, {config.n_embd} fp32 numbers)"
