"""Layers on a GPU with kernels of our own, where PyTorch takes several launches for a few numbers, or a slow one.

A decode of one sequence moves kilobytes between its products, so much of the time goes into launches: 2 to 4 us each,
even in a CUDA graph. What is computed is the same as in minipage/model/layers/plain.py, in float32 and rounded once.

    linear        of few rows, with bias, activation and the sum with `onto`: 1 launch instead of 3 (few_rows.py)
    rotate_both   q and k of all heads, where they are: 1 launch instead of 14; or none, see turned.py
    gated         silu(gate) * up: 1 launch instead of 2
    norms         a block for each row, in which each thread loads its part of x and of the weight at once
    launch_put    tokens that were drawn on the device go to where the step reads its tokens: 1 launch instead of 5

A launch takes the host several times longer than one of PyTorch's. That is of no account in a graph; and of many
tokens, which are never in one, PyTorch's own norm and gate take as long as ours.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch

from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import elements, layout, view, words
from minipage.attention.cuda.kinds import Kind, kind_of, reader
from minipage.attention.cuda.ptx import (
    bits_of_float,
    load_16_bytes_now,
    load_16_new_bytes,
    order_of_kernels,
    store_16_bytes,
)
from minipage.model.architecture import Activation, Array, Turn
from minipage.model.layers.torch import TorchLayers
from minipage.worker.gpu import few_rows
from minipage.worker.gpu.turned import Later

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

    def __init__(self, layers: TorchLayers, later: Later | None = None) -> None:
        vars(self).update(vars(layers), _scopes={})
        self._later = later or Later()  # in all scopes

    def linear(self, name: str, x: Array, then: Activation | None = None, onto: Array | None = None) -> Array:
        layer = self._parts[name]
        if not few_rows.can_multiply(x, layer.weight.T):
            return super().linear(name, x, then, onto)
        return few_rows.product(x, layer.weight.T, layer.bias, then, onto, current_stream())  # [T, out]

    def linears(self, names: tuple[str, ...], x: Array) -> tuple[Array, ...]:
        layer = self._parts[names]
        if not few_rows.can_multiply(x, layer.weight.T):
            return super().linears(names, x)
        x = few_rows.product(x, layer.weight.T, layer.bias, stream=current_stream())  # [T, in] -> [T, out of all]
        return tuple(torch.split_with_sizes(x, self._widths[names], 1))  # each [T, out]

    def scores(self, name: str, hidden: Array) -> Array:
        head: Any = self._heads[name]
        if not few_rows.can_multiply(hidden, head.table):
            return super().scores(name, hidden)
        return few_rows.product(hidden, head.table, stream=current_stream())[:, : head.num_words]  # [N, C] -> [N, V]

    def rms_norm(self, name: str, x: Array, epsilon: float) -> Array:
        weight = self._parts[name].weight  # [C]
        if not is_in_pieces(x, weight):
            return super().rms_norm(name, x, epsilon)
        out = torch.empty_like(x)  # [..., C]
        launch_norm(x, weight, None, epsilon, out, is_centered=False, stream=current_stream())
        return out

    def layer_norm(self, name: str, x: Array, epsilon: float) -> Array:
        weight, bias = self._parts[name]  # [C] each
        if bias is None or not is_in_pieces(x, weight):
            return super().layer_norm(name, x, epsilon)
        out = torch.empty_like(x)  # [..., C]
        launch_norm(x, weight, bias, epsilon, out, is_centered=True, stream=current_stream())
        return out

    def gated(self, gate: Array, up: Array) -> Array:
        if len(gate) > MOST_TOKENS:
            return super().gated(gate, up)
        out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)  # [T, I]
        launch_gated(gate, up, out, current_stream())
        return out

    def rotate_both(self, q: Array, k: Array, turn: Turn) -> tuple[Array, Array]:
        if not self._later.put_off(q, turn):
            launch_rotate(q, k, *turn, current_stream())
        return q, k


def current_stream() -> int:
    return int(torch.cuda.current_stream().cuda_stream)


def is_in_pieces(x: Array, weight: Array) -> bool:
    """Whether there are rows of x [..., C] for `launch_rms_norm`, and not too many."""
    num_bytes = len(weight) * weight.element_size()  # of a row
    is_whole = num_bytes % PIECE == 0 and num_bytes <= MOST_THREADS * PIECE
    return bool(is_whole and len(x) <= MOST_TOKENS and x.is_contiguous() and x.data_ptr() % PIECE == 0)


def launch_norm(
    x: Array, weight: Array, bias: Array | None, epsilon: float, out: Array, *, is_centered: bool, stream: int = 0
) -> None:
    """out = x / sqrt(mean(x * x) + epsilon) * weight + bias, each [..., C] and contiguous; C is in whole pieces.

    is_centered: the mean of x is subtracted from it before.
    """
    x, weight = view(x), view(weight)  # looked at more than once
    where = layout(x)
    *outer, size = where.shape
    num_pieces = size * where.dtype.itemsize // PIECE
    norm = norm_kernel(kind_of(where.dtype, "x"), is_centered, bias is not None)
    if num_rows := math.prod(outer):
        norm[num_rows, -(-num_pieces // WARP) * WARP, external_stream(stream)](
            words(x), words(weight), words(weight if bias is None else bias), words(out), num_pieces, size,
            np.float32(epsilon),
        )  # fmt: skip


@cache
def norm_kernel(kind: Kind, is_centered: bool, has_bias: bool) -> Any:
    """A block for each row, and in it a thread for each piece. Weight and bias are loaded while x is not there yet."""
    norm_of_piece = piece_norm(kind, is_centered, has_bias)
    let_next_begin, wait_for_last = order_of_kernels()

    def norm(x, weight, bias, out, num_pieces, size, epsilon):
        let_next_begin()
        thread = cuda.threadIdx.x
        piece = min(thread, num_pieces - 1)
        place = 4 * (cuda.blockIdx.x * num_pieces + piece)
        w = load_16_bytes_now(weight, 4 * piece)
        b = load_16_bytes_now(bias, 4 * piece) if has_bias else w
        wait_for_last()
        results = norm_of_piece(load_16_new_bytes(x, place), w, b, thread < num_pieces, size, epsilon)
        if thread < num_pieces:
            store_16_bytes(out, place, results)

    return kernel(norm, fastmath=False, overlaps=True)


@cache
def piece_norm(kind: Kind, is_centered: bool, has_bias: bool) -> Any:
    """A device function for all threads of a block, each of which has a piece of a row: what its four words become."""
    number, stored, PER_WORD = kind.number, kind.stored, kind.per_word

    def result(word, mean, factor, weight, bias):
        """What becomes of the numbers of a word."""
        low = (number(word, 0) - mean) * factor * number(weight, 0)
        if has_bias:
            low += number(bias, 0)
        if PER_WORD == 1:
            return bits_of_float(low)
        high = (number(word, 1) - mean) * factor * number(weight, 1)
        if has_bias:
            high += number(bias, 1)
        return uint32(uint32(stored(high)) << 16 | uint32(stored(low)))

    result = device_function(result, fastmath=False)

    @device_function
    def sum_of_block(x, parts):
        for bit in (16, 8, 4, 2, 1):
            x += cuda.shfl_xor_sync(0xFFFFFFFF, x, bit)
        if cuda.threadIdx.x % WARP == 0:
            parts[cuda.threadIdx.x // WARP] = x
        cuda.syncthreads()
        x = float32(0)
        for warp in range(cuda.blockDim.x // WARP):
            x += parts[warp]
        return x

    def norm_of_piece(a, w, b, is_piece, size, epsilon):
        mean = float32(0)
        if is_centered:
            total = float32(0)
            for j in range(4):
                for i in range(PER_WORD):
                    total += number(a[j], i)
            sums = cuda.shared.array(MOST_WARPS, float32)
            mean = sum_of_block(total if is_piece else float32(0), sums) / float32(size)
        squares = float32(0)
        for j in range(4):
            for i in range(PER_WORD):
                squares += (number(a[j], i) - mean) * (number(a[j], i) - mean)
        parts = cuda.shared.array(MOST_WARPS, float32)
        squares = sum_of_block(squares if is_piece else float32(0), parts)
        f = ONE / float32(math.sqrt(squares / float32(size) + epsilon))
        return (
            result(a[0], mean, f, w[0], b[0]), result(a[1], mean, f, w[1], b[1]),
            result(a[2], mean, f, w[2], b[2]), result(a[3], mean, f, w[3], b[3]),
        )  # fmt: skip

    return device_function(norm_of_piece, fastmath=False)


def launch_rotate(q: Array, k: Array, cosines: Array, sines: Array, stream: int = 0) -> None:
    """Turn q [T, H, D] and k [T, KH, D] in place, by cosines and sines [T, 1, R / 2].

    The last two axes of q and k must be contiguous.
    """
    q, k, cosines = view(q), view(k), view(cosines)  # looked at more than once
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
    let_next_begin, wait_for_last = order_of_kernels()

    def turn_pair(x, i, half, cosine, sine):
        a, b = number(x[i]), number(x[i + half])
        x[i] = stored(a * cosine - b * sine)
        x[i + half] = stored(b * cosine + a * sine)

    turn_pair = device_function(turn_pair, fastmath=False)

    def rotate(q, k, cosines, sines, q_stride, k_stride, num_q_heads, num_k_heads, head_size, half):
        let_next_begin()
        wait_for_last()
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

    return kernel(rotate, fastmath=False, overlaps=True)


def launch_gated(gate: Array, up: Array, out: Array, stream: int = 0) -> None:
    """out = silu(gate) * up, each [T, I]; their rows are contiguous, and those of `out` lie one after the other."""
    gate, up = view(gate), view(up)  # looked at more than once
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
    let_next_begin, wait_for_last = order_of_kernels()

    def gated(gate, up, out, gate_stride, up_stride, size):
        let_next_begin()
        wait_for_last()
        token = cuda.blockIdx.x
        i = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
        if i < size:
            x = number(gate[token * gate_stride + i])
            e = float32(math.exp(-abs(x)))  # whatever the sign, it cannot become infinite
            silu = x * (ONE if x >= 0 else e) / (ONE + e)
            out[token * size + i] = stored(silu * number(up[token * up_stride + i]))

    return kernel(gated, fastmath=False, overlaps=True)


def launch_put(token_ids: Array, drawn: Array, out: Array, stream: int = 0) -> None:
    """out [T] = token_ids [T], in which ~i is the i-th of the tokens drawn; see ahead.py."""
    (num_tokens,) = layout(token_ids).shape
    put_kernel()[-(-num_tokens // THREADS), THREADS, external_stream(stream)](
        elements(token_ids), elements(drawn), elements(out)
    )


@cache
def put_kernel() -> Any:
    let_next_begin, wait_for_last = order_of_kernels()

    def put(token_ids, drawn, out):
        let_next_begin()
        wait_for_last()
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        if i < len(token_ids):
            token = token_ids[i]
            out[i] = token if token >= 0 else max(drawn[-1 - token], 0)  # where none was drawn, any will do

    return kernel(put, overlaps=True)
