"""Where a model lives: in which array library, in which number format, on which device.

arrays     dtype                           device         layers
"numpy"    float32                         cpu            compiled; with quantization="int8" int8
"plain"    float32                         cpu            plain: NumPy alone, with no machine code to wait for
"torch"    float32, bfloat16, float16      cpu, cuda      torch; for bfloat16 on a CPU bfloat16 or onednn
"cupy"     float32, float16                cuda           plain
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import numpy as np

from minipage.errors import ConfigurationError, shown
from minipage.model.architecture import Architecture, Array, Layers, Model
from minipage.model.layers.compiled import CompiledLayers
from minipage.model.layers.int8 import Int8Layers, Largest, largest_of
from minipage.model.layers.plain import PlainLayers
from minipage.model.layers.sharded import ShardedLayers, Talk
from minipage.model.shard import Shard
from minipage.model.stored_weights import SPREAD, DummyWeights, Weights, as_float32

Item = TypeVar("Item")
Progress: TypeAlias = Callable[[int, int], object]  # is told how many of how many weights are loaded

DTYPES = {
    "numpy": ("float32",), "plain": ("float32",), "torch": ("float32", "bfloat16", "float16"),
    "cupy": ("float32", "float16"),
}  # fmt: skip
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}  # of a number
DEVICES = {"numpy": ("cpu",), "plain": ("cpu",), "torch": ("cpu", "cuda"), "cupy": ("cuda",)}


def place_model(
    architecture: Architecture,
    weights: Weights,
    arrays: str = "numpy",
    dtype: str = "float32",
    device: str = "cpu",
    progress: Progress | None = None,
    quantization: str | None = None,
    talk: Talk | None = None,
) -> Model:
    """A model with these weights, each of which is on its way alone: read, brought to the device, made what is kept.

    talk: with other ranks, which have other parts of the weights; None: there are none.

    Raises ConfigurationError if the options do not go together, a library is missing, or there is no room for them.
    """
    check_quantization(quantization, arrays, dtype)
    shard: Any = None if talk is None else Shard(architecture, talk.rank, talk.size)
    make, parts = kind_of_layers(arrays, dtype, device, quantization), weights
    if shard and make is Int8Layers:
        largest: Largest = {}
        make, parts = partial(Int8Layers, largest=largest), weights.only(noting_largest(shard, largest))
    elif shard:
        parts = weights.only(shard.part)
    placed = as_arrays(parts, arrays, dtype, device)
    if torch_device(device) == "cpu":
        check_room(architecture, "int8" if quantization else dtype, 1 if talk is None else talk.size)
    if progress is not None:
        placed = counted(placed, len(weights), progress)
    layers = make(shard or architecture, placed)
    if talk is None:
        return Model(architecture, layers)
    return Model(shard, ShardedLayers(shard, layers, talk))


def noting_largest(shard: Shard, largest: Largest) -> Callable[[str, Array], Array]:
    """As `shard.part`, which sees whole weights as they come: of a matrix that is cut by rows, what has to be known of
    the others' rows goes into `largest`."""

    def part(name: str, weight: Array) -> Array:
        spec = shard.specs[name]
        if spec.split == "in" and not spec.is_table and name != f"{shard.head}.weight":
            largest[name] = largest_of(as_float32(weight))  # [out]
        return shard.part(name, weight)  # [some of in, out]

    return part


def counted(items: Iterator[Item], total: int, progress: Progress) -> Iterator[Item]:
    for done, item in enumerate(items):
        progress(done, total)
        yield item
    progress(total, total)


def kind_of_layers(
    arrays: str, dtype: str, device: str, quantization: str | None = None
) -> Callable[[Architecture, Iterator[Any]], Layers]:
    """Which class computes the model."""
    if arrays == "numpy":
        return CompiledLayers if quantization is None else Int8Layers
    if arrays in ("plain", "cupy"):
        return PlainLayers
    from minipage.model.layers import bfloat16, onednn, torch  # need PyTorch, which as_arrays has found

    if device == "cpu" and dtype == "bfloat16" and bfloat16.able():
        return bfloat16.BFloat16Layers
    return onednn.OneDNNLayers if device == "cpu" and dtype == "bfloat16" and onednn.able() else torch.TorchLayers


def as_arrays(
    weights: Weights, arrays: str, dtype: str = "float32", device: str = "cpu"
) -> Iterator[tuple[str, Array]]:
    """The weights as arrays of a library, one after the other; those of the right type are not copied on the CPU.

    To a GPU they go as they are stored, and become `dtype` there. Random ones are made where they stay.
    """
    check(arrays, dtype, device)
    if arrays in ("numpy", "plain"):
        return iter(weights.items())
    if arrays == "cupy":
        cupy = find_cupy()
        return ((name, cupy.asarray(weight, dtype)) for name, weight in weights.items())
    torch = find_torch(device)
    place, kind = torch_device(device), getattr(torch, dtype)
    if isinstance(weights, DummyWeights):
        return random_tensors(torch, weights, place, kind)
    return ((name, as_tensor(torch, array).to(place).to(kind)) for name, array in weights.stored())


def as_tensor(torch: ModuleType, array: Array) -> Array:
    """A NumPy array as a checkpoint has it as a PyTorch tensor: the same memory, in which uint16 are bfloat16."""
    tensor = torch.from_numpy(np.require(array, requirements="A"))  # [...]
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def random_tensors(torch: ModuleType, weights: DummyWeights, place: str, kind: Any) -> Iterator[tuple[str, Array]]:
    generator = torch.Generator(device=place).manual_seed(0)
    for name, shape, mean in weights.shapes():
        array = torch.empty(shape, dtype=kind, device=place).normal_(mean, SPREAD, generator=generator)
        part = weights.part(name, array)
        yield name, array if part is array else part.clone()  # or all of it would stay


def is_simulated() -> bool:
    """Whether numba's CUDA kernels run in its simulator. Then device="cuda" computes on the CPU, slowly."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def torch_device(device: str) -> str:
    """Where PyTorch's tensors live: under the simulator, "cuda" is the CPU."""
    return "cpu" if is_simulated() else device


def check(arrays: str, dtype: str, device: str) -> None:
    for name, value, known in (
        ("arrays", arrays, list(DTYPES)),
        ("dtype", dtype, DTYPES["torch"]),
        ("device", device, DEVICES["torch"]),
    ):
        if not isinstance(value, str) or value not in known:
            raise ConfigurationError(f"{name} is {shown(value)}; it must be one of {', '.join(known)}.")
    for name, value, table in (("dtype", dtype, DTYPES), ("device", device, DEVICES)):
        if value not in table[arrays]:
            able = " or ".join(repr(each) for each in DTYPES if dtype in DTYPES[each] and device in DEVICES[each])
            raise ConfigurationError(
                f"{name} is {value!r}, but arrays is {arrays!r}, which has only {', '.join(table[arrays])} here. "
                f"Use arrays={able}."
            )


def check_room(architecture: Architecture, dtype: str, num_ranks: int) -> None:
    """Raise ConfigurationError if the weights alone take more of a CPU's memory than there is.

    Linux ends a process that takes more, without a word, so it is asked beforehand. Other systems say it themselves.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    if "MemAvailable" not in kib:  # of what only looks like Linux
        return
    room = 1024 * (kib["MemAvailable"] + kib.get("SwapFree", 0))
    needed = BYTES[dtype] * sum(math.prod(weight.shape) for _, weight in architecture.weights()) // num_ranks
    if needed > room:
        raise ConfigurationError(
            f"the weights take {needed / 2**30:,.1f} GiB in {dtype}, and there are {room / 2**30:,.1f} GiB of memory "
            "left. Choose a smaller model, or fewer bytes for each number: see dtype and quantization."
        )


def check_quantization(quantization: str | None, arrays: str, dtype: str) -> None:
    if quantization is not None and not (isinstance(quantization, str) and quantization == "int8"):
        raise ConfigurationError(f"quantization is {shown(quantization)}; it must be None or int8.")
    if quantization is not None and (arrays, dtype) != ("numpy", "float32"):
        raise ConfigurationError(
            f"quantization is {quantization!r}, but arrays is {arrays!r} and dtype {shown(dtype)}: weights of one byte "
            "are computed with by minipage's own kernels on a CPU. Use arrays='numpy', dtype='float32', device='cpu'."
        )


def find_torch(device: str) -> ModuleType:
    """PyTorch, able to compute on `device`; ConfigurationError says what is missing."""
    try:
        import torch
    except ImportError:
        raise ConfigurationError("arrays='torch' needs PyTorch: pip install minipage[torch].") from None
    if torch_device(device) == "cuda" and not torch.cuda.is_available():
        if torch.version.cuda is None:
            reason = f"PyTorch {torch.__version__} was built without CUDA; install a build with it, see pytorch.org"
        else:
            reason = "PyTorch finds no NVIDIA GPU, or no driver for it; `minipage info` says what is there"
        raise ConfigurationError(f"device is 'cuda', but {reason}. Without a GPU, leave device out.")
    return torch


def find_cupy() -> ModuleType:
    """CuPy, with a GPU that it can use; ConfigurationError says what is missing."""
    try:
        import cupy  # type: ignore[import-not-found]
    except ImportError:
        raise ConfigurationError("arrays='cupy' needs CuPy: pip install cupy-cuda13x (or cupy-cuda12x).") from None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ConfigurationError(
            f"arrays is 'cupy', but CuPy finds no NVIDIA GPU, or no driver for it ({error}). `minipage info` says what "
            "is there. CuPy on the CPU is NumPy: use arrays='numpy'."
        ) from None
    module: ModuleType = cupy
    return module
