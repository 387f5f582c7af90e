"""What is no product in a layer, each in one compiled pass over its numbers: norms, the gate, the turning of heads.

Arrays are all of float32, or all of uint16, which are the bits of bfloat16; the sums are made in float32. One thread
does it all: to wake another would take longer.
"""

from __future__ import annotations

import math

import numpy as np

from minipage.errors import require
from minipage.model.architecture import Turn
from minipage.simd.arrays import Floats, as_they_lie
from minipage.simd.bfloat16 import as_float, as_kept
from minipage.simd.options import compiled
from minipage.simd.vectors import exp

COPIED = 32  # rows at a time of matrices side by side: new memory for all rows would take longer than the gate


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, epsilon: float) -> Floats:
    rows = as_rows(x, len(weight))  # [rows, C]
    out = np.empty_like(rows)  # [rows, C]
    _layer_norm(rows, weight, np.zeros_like(weight) if bias is None else bias, epsilon, out)
    return out if x.ndim == 2 else out.reshape(x.shape)  # [..., C]


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    rows = as_rows(x, len(weight))  # [rows, C]
    out = np.empty_like(rows)  # [rows, C]
    _rms_norm(rows, weight, epsilon, out)
    return out if x.ndim == 2 else out.reshape(x.shape)  # [..., C]


def gated(gate: Floats, up: Floats) -> Floats:
    require(gate.ndim == 2 and gate.shape == up.shape, lambda: f"{gate.shape} and {up.shape} are not alike.")
    out = gate.copy()  # [T, I]
    for start in range(0, len(gate), COPIED):
        some = slice(start, start + COPIED)
        gate_in_place(out[some].reshape(-1), as_they_lie(up[some]).reshape(-1), out)
    return out


def rotate(x: Floats, turn: Turn) -> Floats:
    cosines, sines = turn  # each [T, 1, R / 2]
    require(
        x.ndim == 3 and cosines.shape == sines.shape and len(x) == len(cosines) and x.shape[2] >= 2 * sines.shape[2],
        lambda: f"heads of {x.shape} cannot be turned by {cosines.shape} and {sines.shape}.",
    )
    out = np.empty(x.shape, x.dtype)  # [T, n, D]
    _rotate(as_they_lie(x), cosines, sines, out)
    return out


def as_rows(x: Floats, size: int) -> Floats:
    """[..., C] -> [rows, C], one number after the other; a copy only if need be."""
    require(x.shape[-1:] == (size,), lambda: f"x is {x.shape}; its last axis must be {size}.")
    return as_they_lie(x if x.ndim == 2 else x.reshape(-1, size))


@compiled
def _layer_norm(x, weight, bias, epsilon, out):  # type: ignore[no-untyped-def]
    size = np.float32(x.shape[1])
    for t in range(len(x)):
        row = x[t]  # [C]
        total = np.float32(0)
        for i in range(len(row)):
            total += as_float(row[i])
        mean, squares = total / size, np.float32(0)
        for i in range(len(row)):
            squares += (as_float(row[i]) - mean) ** 2
        factor = np.float32(1 / math.sqrt(squares / size + epsilon))
        for i in range(len(row)):
            out[t, i] = as_kept((as_float(row[i]) - mean) * factor * as_float(weight[i]) + as_float(bias[i]), out)


@compiled
def _rms_norm(x, weight, epsilon, out):  # type: ignore[no-untyped-def]
    size = np.float32(x.shape[1])
    for t in range(len(x)):
        row = x[t]  # [C]
        squares = np.float32(0)
        for i in range(len(row)):
            squares += as_float(row[i]) ** 2
        factor = np.float32(1 / math.sqrt(squares / size + epsilon))
        for i in range(len(row)):
            out[t, i] = as_kept(as_float(row[i]) * factor * as_float(weight[i]), out)


@compiled
def gate_in_place(x, up, like):  # type: ignore[no-untyped-def]
    """x = silu(x) * up, numbers that lie side by side; before, both are rounded as `like` keeps numbers."""
    for i in range(len(x)):
        v, u = as_float(as_kept(as_float(x[i]), like)), as_float(as_kept(as_float(up[i]), like))
        e = exp(-abs(v))
        x[i] = as_kept(v * (np.float32(1) if v >= 0 else e) / (np.float32(1) + e) * u, x)


@compiled
def _rotate(x, cosines, sines, out):  # type: ignore[no-untyped-def]
    half = cosines.shape[2]
    for t in range(len(x)):
        for head in range(x.shape[1]):
            for i in range(half):
                a, b = as_float(x[t, head, i]), as_float(x[t, head, half + i])
                out[t, head, i] = as_kept(a * as_float(cosines[t, 0, i]) - b * as_float(sines[t, 0, i]), out)
            for i in range(half):
                a, b = as_float(x[t, head, i]), as_float(x[t, head, half + i])
                out[t, head, half + i] = as_kept(b * as_float(cosines[t, 0, i]) + a * as_float(sines[t, 0, i]), out)
            for i in range(2 * half, x.shape[2]):
                out[t, head, i] = x[t, head, i]
