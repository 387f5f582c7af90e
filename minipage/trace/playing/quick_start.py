"""Never a dead screen: a machine that has compiled no kernel yet shows the demo with NumPy alone.

Compiling takes half a minute, and the shipped model is small enough to do without: the same tokens, the same blocks, a
little slower. Where the machine code is there already, or another model or kernel is asked for, it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minipage.engine.llm import LLM

NUMPY = {"arrays": "plain", "attention": "reference"}  # options of LLM
ASKED_FOR = {"model", "device", "arrays", "attention", "dtype"}  # with one of these the viewer has chosen
TEXT = "To be, or not to be"  # long enough that all the kernels are needed
NOTE = f"not all kernels are compiled on this machine yet, so NumPy computes this; `generate '{TEXT}'` compiles them."


def quick_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Options of LLM with which the first step need not wait for a compiler; none, if it would not have to."""
    return {} if ASKED_FOR & options.keys() or are_compiled() else dict(NUMPY)


def are_compiled() -> bool:
    """Whether the kernels of the model and of attention lie in numba's cache on disk."""
    from minipage.attention import decode, prefill
    from minipage.model.layers import compiled
    from minipage.simd.options import IN_PYTHON

    kernels = (compiled._linear, decode.decode, prefill.prefill)
    return IN_PYTHON or all(any(machine_code(kernel)) for kernel in kernels)


def machine_code(kernel: Any) -> list[Path]:
    """The files in numba's cache that a compiled function has."""
    function = getattr(kernel, "py_func", kernel)
    folder = getattr(getattr(kernel, "stats", None), "cache_path", None)
    module = function.__module__.rsplit(".", 1)[-1]
    return list(Path(folder).glob(f"{module}.{function.__qualname__}-*.nbc")) if folder else []


def kernel_name(llm: LLM) -> str:
    """What computes attention, and in what."""
    runner: Any = getattr(llm.runner, "runner", llm.runner)  # of several ranks, this one's
    kernel: Any = getattr(runner, "paged_attention", None)
    module = getattr(kernel, "__module__", "") or ""
    names = {
        "minipage.attention.cpu": "attention: numba, compiled",
        "minipage.attention.loops": "attention: plain loops, compiled by numba",
        "minipage.attention.reference": "attention: NumPy (the reference)",
    }
    return names.get(module, "attention: CUDA" if "cuda" in module or kernel is None else "attention: your own")
