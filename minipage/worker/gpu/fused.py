"""Layers on a GPU with kernels of our own, where PyTorch takes several launches for a few numbers, or a slow one.

A decode of one sequence moves kilobytes between its products, so much of the time goes into launches: 2 to 4 us each,
even in a CUDA graph. What is computed is the same as in minipage/model/layers/plain.py, in float32 and rounded once.

    rotate_both   q and k of all heads, where they are: 1 launch instead of 14
    gated         silu(gate) * up: 1 launch instead of 2
    rms_norm      a block for each row, all of which is read at once
    linear(s)     of one row: a warp for each number of the result, which adds up its row of the matrix. It is
                  nothing but reading the matrix, and for that the GPU's libraries take up to a fifth longer
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
from minipage.attention.cuda.ptx import load_16_bytes, load_16_bytes_to_keep
from minipage.model.architecture import Activation, Array, Turn
from minipage.model.layers.torch import Linear, TorchLayers

THREADS = 256  # of a block
NORM_THREADS = 512  # of a block that has a row
WARP = 32
NUM_WARPS = 8  # of a block that has as many rows
ONE = np.float32(1)
float32 = types.float32


class FusedLayers(TorchLayers):
    """The same layers, with kernels of our own."""

    def __init__(self, layers: TorchLayers) -> None:
        vars(self).update(vars(layers), _scopes={})

    def linear(self, name: str, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        layer = self._parts[name]
        if then is None and is_read_in_rows(x, layer):
            return product_of_row(layer.weight.T, x, onto)
        return super().linear(name, x, then, onto)

    def linears(self, names: tuple[str, ...], x: Array) -> tuple[Array, ...]:
        layer = self._parts[names]
        if is_read_in_rows(x, layer):
            return tuple(torch.split_with_sizes(product_of_row(layer.weight.T, x), self._widths[names], 1))
        return super().linears(names, x)

    def rms_norm(self, name: str, x: Array, epsilon: float) -> Array:
        weight = self._parts[name].weight  # [C]
        if not x.is_contiguous() or len(weight) % 2:
            return super().rms_norm(name, x, epsilon)
        out = torch.empty_like(x)  # [..., C]
        launch_rms_norm(x, weight, epsilon, out, current_stream())
        return out

    def gated(self, gate: Array, up: Array) -> Array:
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)  # [T, I]
        launch_gated(gate, up, out, current_stream())
        return out

    def rotate_both(self, q: Array, k: Array, turn: Turn) -> tuple[Array, Array]:
        launch_rotate(q, k, *turn, current_stream())
        return q, k


def current_stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def is_read_in_rows(x: Array, layer: Any) -> bool:
    """Whether the product [1, in] @ [in, out] is one for `launch_product_of_row`."""
    if len(x) != 1 or type(layer) is not Linear or layer.bias is not None:
        return False
    return bool(layer.weight.T.is_contiguous() and x.is_contiguous() and x.shape[1] * x.element_size() % 16 == 0)


def product_of_row(rows: Array, x: Array, onto: Array | None = None) -> Array:
    """[1, in] -> [1, out], for a matrix [out, in]."""
    out = torch.empty((1, len(rows)), dtype=x.dtype, device=x.device) if onto is None else onto  # [1, out]
    launch_product_of_row(rows, x, out, onto is not None, current_stream())
    return out


def launch_product_of_row(rows: Array, x: Array, out: Array, adds: bool, stream: int = 0) -> None:
    """out [1, out] = (adds: out +) x [1, in] @ rows.T, for rows [out, in]; all contiguous, at multiples of 16 bytes."""
    where = layout(rows)
    num_out, num_in = where.shape
    launch = product_kernel(kind_of(where.dtype, "x"), num_in * where.dtype.itemsize // 16, adds)
    launch[-(-num_out // NUM_WARPS), NUM_WARPS * WARP, external_stream(stream)](
        words(rows), words(x), elements(out), num_out
    )


@cache
def product_kernel(kind: Kind, num_pieces: int, adds: bool) -> Any:
    """A warp for each row, which is `num_pieces` pieces of 16 bytes; two of them are under way in each lane."""
    number, stored, from_memory = kind.number, kind.stored, reader(kind)
    PER_WORD = kind.per_word

    def add_word(total, a, b):
        for i in range(PER_WORD):
            total += number(a, i) * number(b, i)
        return total

    add_word = device_function(add_word, fastmath=False)

    def add_piece(total, rows, place, x, i):
        a, b = load_16_bytes(rows, place + 4 * i), load_16_bytes_to_keep(x, 4 * i)
        for j in range(4):
            total = add_word(total, a[j], b[j])
        return total

    add_piece = device_function(add_piece, fastmath=False)

    def product_of_row(rows, x, out, num_out):
        lane = cuda.threadIdx.x % WARP
        row = cuda.blockIdx.x * NUM_WARPS + cuda.threadIdx.x // WARP
        if row >= num_out:
            return
        even, odd, place = float32(0), float32(0), row * num_pieces * 4
        for i in range(lane, num_pieces, 2 * WARP):
            even = add_piece(even, rows, place, x, i)
            if i + WARP < num_pieces:
                odd = add_piece(odd, rows, place, x, i + WARP)
        total = even + odd
        for bit in (16, 8, 4, 2, 1):
            total += cuda.shfl_xor_sync(0xFFFFFFFF, total, bit)
        if lane == 0:
            out[row] = stored(from_memory(out[row]) + total if adds else total)

    return kernel(product_of_row, fastmath=False)


def launch_rms_norm(x: Array, weight: Array, epsilon: float, out: Array, stream: int = 0) -> None:
    """out = x / sqrt(mean(x * x) + epsilon) * weight, each [..., C] and contiguous, of an even number C."""
    *outer, size = layout(x).shape
    if num_rows := math.prod(outer):
        norm_kernel(kind_of(layout(x).dtype, "x"))[num_rows, NORM_THREADS, external_stream(stream)](
            words(x), words(weight), elements(out), size, np.float32(epsilon)
        )


@cache
def norm_kernel(kind: Kind) -> Any:
    number, stored, PER_WORD = kind.number, kind.stored, kind.per_word
    NORM_WARPS = NORM_THREADS // WARP

    def rms_norm(x, weight, out, size, epsilon):
        row, thread = cuda.blockIdx.x, cuda.threadIdx.x
        parts = cuda.shared.array(NORM_WARPS, float32)
        num_words = size // PER_WORD
        squares = float32(0)
        for w in range(thread, num_words, NORM_THREADS):
            word = x[row * num_words + w]
            for i in range(PER_WORD):
                squares += number(word, i) * number(word, i)
        for bit in (16, 8, 4, 2, 1):
            squares += cuda.shfl_xor_sync(0xFFFFFFFF, squares, bit)
        if thread % WARP == 0:
            parts[thread // WARP] = squares
        cuda.syncthreads()
        squares = float32(0)
        for warp in range(NORM_WARPS):
            squares += parts[warp]
        factor = ONE / float32(math.sqrt(squares / float32(size) + epsilon))
        for w in range(thread, num_words, NORM_THREADS):
            word, of_weight = x[row * num_words + w], weight[w]
            for i in range(PER_WORD):
                out[row * size + w * PER_WORD + i] = stored(number(word, i) * factor * number(of_weight, i))

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
