"""Layers on a GPU with kernels of our own, where PyTorch takes several launches for a few numbers, or a slow one.

A decode of one sequence moves kilobytes between its products, so much of the time goes into launches: 2 to 4 us each,
even in a CUDA graph. What is computed is the same as in minipage/model/layers/plain.py, in float32 and rounded once.

    rotate_both   q and k of all heads, where they are: 1 launch instead of 14
    gated         silu(gate) * up: 1 launch instead of 2
    rms_norm      a block for each row, in which each thread loads its part of x and of the weight at once

A launch with numba takes the host about 50 us, several times longer than PyTorch's. That is of no account in a graph;
and of many tokens, which are never in one, PyTorch's own norm and gate take as long as ours.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch

from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import elements, layout, words
from minipage.attention.cuda.kinds import Kind, kind_of, reader
from minipage.attention.cuda.ptx import bits_of_float, load_16_bytes, store_16_bytes
from minipage.model.architecture import Array, Turn
from minipage.model.layers.torch import TorchLayers

MOST_TOKENS = 256  # in a step that is done with our own norm and gate
THREADS = 256  # of a block
MOST_THREADS = 1024  # that CUDA allows
MOST_WARPS = 32
PIECE = 16  # bytes that are loaded at once
WARP = 32
ONE = np.float32(1)
float32, uint32 = types.float32, types.uint32


class FusedLayers(TorchLayers):
    """The same layers, with kernels of our own."""

    def __init__(self, layers: TorchLayers) -> None:
        vars(self).update(vars(layers), _scopes={})

    def rms_norm(self, name: str, x: Array, epsilon: float) -> Array:
        weight = self._parts[name].weight  # [C]
        if not is_in_pieces(x, weight):
            return super().rms_norm(name, x, epsilon)
        out = torch.empty_like(x)  # [..., C]
        launch_rms_norm(x, weight, epsilon, out, current_stream())
        return out

    def gated(self, gate: Array, up: Array) -> Array:
        if len(gate) > MOST_TOKENS:
            return super().gated(gate, up)
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)  # [T, I]
        launch_gated(gate, up, out, current_stream())
        return out

    def rotate_both(self, q: Array, k: Array, turn: Turn) -> tuple[Array, Array]:
        launch_rotate(q, k, *turn, current_stream())
        return q, k


def current_stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def is_in_pieces(x: Array, weight: Array) -> bool:
    """Whether there are rows of x [..., C] for `launch_rms_norm`, and not too many."""
    num_bytes = len(weight) * weight.element_size()  # of a row
    is_whole = num_bytes % PIECE == 0 and num_bytes <= MOST_THREADS * PIECE
    return bool(is_whole and len(x) <= MOST_TOKENS and x.is_contiguous() and x.data_ptr() % PIECE == 0)


def launch_rms_norm(x: Array, weight: Array, epsilon: float, out: Array, stream: int = 0) -> None:
    """out = x / sqrt(mean(x * x) + epsilon) * weight, each [..., C] and contiguous; C is in whole pieces."""
    where = layout(x)
    *outer, size = where.shape
    num_pieces = size * where.dtype.itemsize // PIECE
    if num_rows := math.prod(outer):
        norm_kernel(kind_of(where.dtype, "x"))[num_rows, -(-num_pieces // WARP) * WARP, external_stream(stream)](
            words(x), words(weight), words(out), num_pieces, size, np.float32(epsilon)
        )


@cache
def norm_kernel(kind: Kind) -> Any:
    """A block for each row, and in it a thread for each piece: x and the weight are both under way at once."""
    number, stored, PER_WORD = kind.number, kind.stored, kind.per_word

    def scaled(word, factor, weight):
        """The numbers of a word, times `factor` and those of `weight`."""
        if PER_WORD == 1:
            return bits_of_float(number(word, 0) * factor * number(weight, 0))
        low = uint32(stored(number(word, 0) * factor * number(weight, 0)))
        high = uint32(stored(number(word, 1) * factor * number(weight, 1)))
        return uint32(high << 16 | low)

    scaled = device_function(scaled, fastmath=False)

    def rms_norm(x, weight, out, num_pieces, size, epsilon):
        thread = cuda.threadIdx.x
        parts = cuda.shared.array(MOST_WARPS, float32)
        piece = min(thread, num_pieces - 1)
        place = 4 * (cuda.blockIdx.x * num_pieces + piece)
        a, w = load_16_bytes(x, place), load_16_bytes(weight, 4 * piece)
        squares = float32(0)
        if thread < num_pieces:
            for j in range(4):
                for i in range(PER_WORD):
                    squares += number(a[j], i) * number(a[j], i)
        for bit in (16, 8, 4, 2, 1):
            squares += cuda.shfl_xor_sync(0xFFFFFFFF, squares, bit)
        if thread % WARP == 0:
            parts[thread // WARP] = squares
        cuda.syncthreads()
        squares = float32(0)
        for warp in range(cuda.blockDim.x // WARP):
            squares += parts[warp]
        f = ONE / float32(math.sqrt(squares / float32(size) + epsilon))
        if thread < num_pieces:
            results = scaled(a[0], f, w[0]), scaled(a[1], f, w[1]), scaled(a[2], f, w[2]), scaled(a[3], f, w[3])
            store_16_bytes(out, place, results)

    return kernel(rms_norm, fastmath=False)


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
