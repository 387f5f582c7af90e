"""Layers on a GPU with two kernels of our own, where PyTorch takes several launches for a few numbers.

A decode of one sequence moves kilobytes between its products, so the time goes into launches: 2 to 3 us each, even in a
CUDA graph. For each layer of a Llama that is

    rotate_both   14 launches ─▶ 1    q and k of all heads, where they are
    gated          2 launches ─▶ 1    silu(gate) * up

What is computed is the same as in minipage/model/layers/plain.py, in float32 and rounded once.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch

from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import elements, layout
from minipage.attention.cuda.kinds import Kind, kind_of, reader
from minipage.model.architecture import Array, Turn
from minipage.model.layers.torch import TorchLayers

THREADS = 256  # of a block
ONE = np.float32(1)
float32 = types.float32


class FusedLayers(TorchLayers):
    """The same layers, with kernels of our own."""

    def __init__(self, layers: TorchLayers) -> None:
        vars(self).update(vars(layers), _scopes={})

    def gated(self, gate: Array, up: Array) -> Array:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)  # [T, I]
        launch_gated(gate, up, out, current_stream())
        return out

    def rotate_both(self, q: Array, k: Array, turn: Turn) -> tuple[Array, Array]:
        launch_rotate(q, k, *turn, current_stream())
        return q, k


def current_stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def launch_rotate(q: Array, k: Array, cosines: Array, sines: Array, stream: int = 0) -> None:
    """Turn q [T, H, D] and k [T, KH, D] in place, by cosines and sines [T, 1, R / 2].

    The last two axes of q and k must be contiguous.
    """
    of_q, of_k = layout(q), layout(k)
    (num_tokens, num_q_heads, head_size), num_k_heads = of_q.shape, of_k.shape[1]
    half, itemsize = layout(cosines).shape[2], of_q.dtype.itemsize
    if num_tokens == 0 or half == 0:
        return
    grid = num_tokens, -(-(num_q_heads + num_k_heads) * half // THREADS)
    rotate_kernel(kind_of(of_q.dtype, "q"))[grid, THREADS, external_stream(stream)](
        elements(q), elements(k), elements(cosines), elements(sines), of_q.strides[0] // itemsize,
        of_k.strides[0] // itemsize, num_q_heads, num_k_heads, head_size, half,
    )  # fmt: skip


@cache
def rotate_kernel(kind: Kind) -> Any:
    """A thread for each pair of numbers of each head."""
    number, stored = reader(kind), kind.stored

    def turn_pair(x, i, half, cosine, sine):
        a, b = number(x[i]), number(x[i + half])
        x[i] = stored(a * cosine - b * sine)
        x[i + half] = stored(b * cosine + a * sine)

    turn_pair = device_function(turn_pair, fastmath=False)

    def rotate(q, k, cosines, sines, q_stride, k_stride, num_q_heads, num_k_heads, head_size, half):
        token = cuda.blockIdx.x
        item = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
        head, pair = item // half, item % half
        if head >= num_q_heads + num_k_heads:
            return
        cosine, sine = number(cosines[token * half + pair]), number(sines[token * half + pair])
        if head < num_q_heads:
            turn_pair(q, token * q_stride + head * head_size + pair, half, cosine, sine)
        else:
            turn_pair(k, token * k_stride + (head - num_q_heads) * head_size + pair, half, cosine, sine)

    return kernel(rotate, fastmath=False)


def launch_gated(gate: Array, up: Array, out: Array, stream: int = 0) -> None:
    """out = silu(gate) * up, each [T, I]; their rows are contiguous, and those of `out` lie one after the other."""
    of_gate, of_up = layout(gate), layout(up)
    num_tokens, size = of_gate.shape
    itemsize = of_gate.dtype.itemsize
    if num_tokens == 0:
        return
    gated_kernel(kind_of(of_gate.dtype, "gate"))[(num_tokens, -(-size // THREADS)), THREADS, external_stream(stream)](
        elements(gate), elements(up), elements(out), of_gate.strides[0] // itemsize, of_up.strides[0] // itemsize, size
    )


@cache
def gated_kernel(kind: Kind) -> Any:
    number, stored = reader(kind), kind.stored

    def gated(gate, up, out, gate_stride, up_stride, size):
        token = cuda.blockIdx.x
        i = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
        if i < size:
            x = number(gate[token * gate_stride + i])
            e = float32(math.exp(-abs(x)))  # whatever the sign, it cannot become infinite
            silu = x * (ONE if x >= 0 else e) / (ONE + e)
            out[token * size + i] = stored(silu * number(up[token * up_stride + i]))

    return kernel(gated, fastmath=False)
