"""What other models use in place of GPT-2's GELU (plain.py)."""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import array_namespace, is_cupy_array, is_numpy_array

from minipage.model.architecture import Array


def gelu_exact(x: Array) -> Array:
    """x times the share of a normal distribution that lies below x."""
    return 0.5 * x * (1.0 + erf(x / math.sqrt(2.0)))


def relu(x: Array) -> Array:
    return array_namespace(x).clip(x, 0.0, None)  # NaN stays NaN


def erf(x: Array) -> Array:
    """The error function, which the array API lacks."""
    if is_numpy_array(x):
        return np.vectorize(math.erf, otypes=[x.dtype])(x)
    if is_cupy_array(x):
        from cupyx.scipy.special import erf as cupy_erf  # type: ignore[import-not-found]

        return cupy_erf(x)
    return array_namespace(x).erf(x)
