"""Arrays as compiled code takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


def as_they_lie(array: Floats) -> Floats:
    """[...] -> [...] the same numbers one after the other, as kernels are compiled for; a copy only if need be."""
    return array if array.flags.carray else array.copy()
