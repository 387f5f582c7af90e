"""The model's arrays as the kernels take them: on a GPU, as they are.

Under numba's simulator kernels take NumPy arrays. PyTorch's tensors are in the computer's memory then, and the kernels
are given the NumPy arrays that they also are, bfloat16 as uint16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_namespace

from minipage.attention.cuda.device_arrays import View, view
from minipage.model.architecture import Array
from minipage.model.place import is_simulated


def for_kernels(array: Array, cache: Any = None) -> Array:
    """[...] -> [...], the same memory, whatever cache it is for."""
    if not is_simulated():
        return array
    xp = array_namespace(array)
    return (array.view(xp.uint16) if array.dtype == xp.bfloat16 else array).numpy()


def view_for_kernels(array: Array, cache: Any = None) -> View:
    """A view of the same memory (see attention/cuda/device_arrays.py), for several launches."""
    return view(for_kernels(array))


def from_kernels(array: Array, like: Array) -> Array:
    """[...] -> [...], the same memory, in the library and dtype of `like`."""
    return array_namespace(like).from_numpy(array).view(like.dtype) if is_simulated() else array


def zeros(xp: Any, device: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array for kernels, of the library xp; dtype: NumPy's, which is uint16 for bfloat16."""
    if is_simulated():
        return np.zeros(shape, dtype)
    name = np.dtype(dtype).name
    if is_torch_namespace(xp):
        name = name.replace("uint16", "bfloat16")
    return xp.zeros(shape, dtype=getattr(xp, name), device=device)
