"""Weights in PyTorch's own format, `pytorch_model.bin`: older checkpoints have nothing else.

Such a file is a pickle, and a pickle can run code. PyTorch reads it without running any (`weights_only`), so it takes
PyTorch; where that is not installed, the error says how to convert the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import numpy.typing as npt

from minipage.errors import ModelError

DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # as safetensors names them


def read_pytorch_files(
    folder: Path, is_wanted: Callable[[str], bool]
) -> dict[str, tuple[str, tuple[int, ...], npt.NDArray[np.uint8]]]:
    """(dtype, shape, bytes) of the tensors in pytorch_model*.bin whose names are wanted.

    Raises:
        ModelError: a file or a tensor cannot be read, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise ModelError(
            f"{folder} has its weights as pytorch_model.bin only, which takes PyTorch to read: pip install "
            f"minipage[torch]. Or convert it to model.safetensors where PyTorch is installed: {conversion(folder)}"
        ) from None
    tensors: dict[str, Any] = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        try:
            tensors |= torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged pickle leads to
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ModelError(f"{file} is damaged, or holds more than weights ({reason}). Fetch it again.") from error
    stored = {}
    for name, tensor in tensors.items():
        if not (isinstance(name, str) and is_wanted(name) and isinstance(tensor, torch.Tensor)):
            continue
        dtype = str(tensor.dtype).removeprefix("torch.")
        try:
            data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()  # [num_bytes]
            stored[name] = DTYPES.get(dtype, dtype), tuple(tensor.shape), data
        except Exception as error:  # it is sparse, nested, without memory, ...: each kind raises its own
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise ModelError(f"{folder}: {name!r} is no plain tensor ({reason}). Save it as one.") from error
    return stored


def conversion(folder: Path) -> str:
    """A command that makes model.safetensors of pytorch_model.bin, without running what is in there."""
    code = (
        "import torch; from pathlib import Path; from safetensors.torch import save_file; "
        f"folder = Path({str(folder)!r}); "
        "save_file({name: weight.clone().contiguous() for file in sorted(folder.glob('pytorch_model*.bin')) "
        "for name, weight in torch.load(file, 'cpu', weights_only=True).items()}, folder / 'model.safetensors')"
    )
    return f"python -c {quote(code)}"
