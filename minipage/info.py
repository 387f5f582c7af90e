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
from minipage.model.checkpoint import SHIPPED_MODEL, describe_model, find_folder


def print_info() -> None:
    for facts in (version_facts(), cpu_facts(), gpu_facts(), model_facts()):
        for name, value in facts:
            print(f"{name:<18}{value}", flush=True)


def version_facts() -> Iterator[tuple[str, str]]:
    yield "minipage", __version__
    yield "python", f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}"
    for package in ("numpy", "numba"):
        yield package, installed(package)
    yield "torch", installed("torch") or "not installed (not needed on a CPU)"


def installed(*packages: str) -> str:
    """The version of the first of these that is installed, or ""."""
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ""


def cpu_facts() -> Iterator[tuple[str, str]]:
    yield "CPUs", f"{os.cpu_count()}, of which numba uses {numba.get_num_threads()}"
    yield "threading layer", threading_layer()
    folders = {kernel.stats.cache_path for kernel in vars(cpu).values() if hasattr(kernel, "stats")}
    for folder in filter(None, folders):
        size = sum(file.stat().st_size for pattern in ("*.nbi", "*.nbc") for file in Path(folder).glob(pattern))
        yield "compiled kernels", f"{size:,} bytes in {folder}"


def threading_layer() -> str:
    """The first of numba's that can be loaded, in the order in which numba itself tries them."""
    for layer in numba.config.THREADING_LAYER_PRIORITY:  # type: ignore[attr-defined]
        try:
            import_module(f"numba.np.ufunc.{'workqueue' if layer == 'workqueue' else layer + 'pool'}")
        except ImportError:
            continue
        return str(layer)
    return "none"


def gpu_facts() -> Iterator[tuple[str, str]]:
    """The GPUs, their driver, and what device="cuda" would use or lacks."""
    lacking = []
    gpus, driver = ask_driver()
    for gpu in gpus or ["none" if driver else "none: there is no NVIDIA driver"]:
        yield "CUDA GPU", gpu
    if driver:
        yield "CUDA driver", driver
    if not gpus:
        lacking.append("a GPU and its driver")
    numba_cuda, torch = installed("numba-cuda"), installed("torch")
    yield "numba-cuda", numba_cuda or "not installed: pip install minipage[cuda13], or [cuda12]"
    if not numba_cuda:
        lacking.append("numba-cuda")
    yield "cupy", installed("cupy-cuda13x", "cupy-cuda12x", "cupy") or "not installed (for arrays='cupy')"
    if not torch or torch.endswith("+cpu"):
        lacking.append("a PyTorch with CUDA")
    yield "device='cuda'", f"lacks {', '.join(lacking)}" if lacking else "has all it needs"


def ask_driver() -> tuple[list[str], str]:
    """([a line for each GPU], the driver's version or ""), from the driver itself: any library would take seconds."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return [], ""
    number, size, name = ctypes.c_int(0), ctypes.c_size_t(0), ctypes.create_string_buffer(100)
    driver.cuDriverGetVersion(ctypes.byref(number))
    driver_version = f"for CUDA {number.value // 1000}.{number.value % 1000 // 10}"
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(number)) != 0:
        return [], driver_version
    gpus = []
    num_devices = number.value
    for device in range(num_devices):
        driver.cuDeviceGetName(name, len(name), device)
        driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        capability = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
            capability.append(str(number.value))
        chip = name.value.decode(errors="replace")
        gpus.append(f"{chip}, {size.value / 2**30:.1f} GiB, compute capability {'.'.join(capability)}")
    return gpus, driver_version


def model_facts() -> Iterator[tuple[str, str]]:
    folder = find_folder(SHIPPED_MODEL)
    model, _ = describe_model(SHIPPED_MODEL)
    parameters = sum(math.prod(weight.shape) for _, weight in model.weights())
    yield "shipped model", f"{SHIPPED_MODEL}, {sum(file.stat().st_size for file in folder.iterdir()):,} bytes"
    yield "", f"{parameters:,} parameters, {model.vocab_size:,} words, a context of {model.max_model_len} tokens"
    num_layers, num_kv_heads, head_size, _ = model.kv
    yield "", f"{num_layers} layers, {model.num_heads} heads of {head_size}"
    numbers = num_kv_heads * head_size
    per_token = 2 * num_layers * numbers * 4
    yield "KV cache", f"{per_token:,} bytes per token (K and V, {num_layers} layers, {numbers} fp32 numbers)"
