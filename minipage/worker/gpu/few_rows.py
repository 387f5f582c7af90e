"""Products of a few rows with a matrix, on tensor cores: x [T, in] @ weight [out, in]^T, for up to 16 rows.

A decode of few sequences does little more than read the weights, so a product should begin to read before its x is
there, and end with all that is done to its result: bias, activation, and the sum with `onto`.

    weight   a block for 8 rows of it, which its warps share by lines of 128 bytes: [ w0 | w1 | w2 | w3 | w0 | ... ]
    x        the same pieces of all its rows; each warp multiplies its own, and the block adds up what they found

`mma.m16n8k16` has x as the left matrix and 8 rows of the weight as the right one; which of its inner indices is which
is of no account, so 16 bytes of a row are a lane's piece as they are: see attention/cuda/tensor_cores.py.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import elements, layout, view, words
from minipage.attention.cuda.fragments import multiplier
from minipage.attention.cuda.kinds import Kind, kind_of, reader
from minipage.attention.cuda.ptx import load_16_bytes_now, load_16_new_bytes, order_of_kernels
from minipage.model.architecture import Activation, Array

float32, int32, uint32 = types.float32, types.int32, types.uint32
WARP = 32
LINE = 32  # words of a row that a warp takes at once: 128 bytes
COLUMNS = 8  # of the result, of a block
MOST_ROWS, MOST_NUMBERS = 8, 2**23  # of a larger matrix; each block reads x anew, so 16 rows pay for a small one only
AT_ONCE = 4  # lines that a warp asks for together
NUM_WARPS = 4, 8, 12  # of a block: the fewest that have the whole row under way; 8, if it is longer
ONE, HALF = np.float32(1), np.float32(0.5)


def can_multiply(x: Array, weight: Array) -> bool:
    """Whether there is a kernel for x [T, in] and weight [out, in]: rows of 2-byte numbers, in whole lines."""
    most_rows = MOST_ROWS if weight.numel() > MOST_NUMBERS else 2 * MOST_ROWS
    return bool(
        0 < len(x) <= most_rows
        and x.element_size() == 2
        and x.shape[1] % (2 * LINE) == 0
        and x.stride(1) == 1
        and x.stride(0) % 8 == 0
        and x.data_ptr() % 16 == 0
        and weight.is_contiguous()
    )


def product(
    x: Array, weight: Array, bias: Array | None = None, then: Activation | None = None, onto: Array | None = None,
    stream: int = 0,
) -> Array:  # fmt: skip
    """then(x [T, in] @ weight [out, in]^T + bias [out]) + onto [T, out], in the memory of `onto`, if there is any."""
    out = x.new_empty((len(x), len(weight))) if onto is None else onto  # [T, out]
    launch_product(x, weight, out, bias, then, onto, stream)
    return out


def launch_product(
    x: Array,
    weight: Array,
    out: Array,
    bias: Array | None = None,
    then: Activation | None = None,
    onto: Array | None = None,
    stream: int = 0,
) -> None:
    """out [T, N] = then(x [T, K] @ weight [N, K]^T + bias [N]) + onto [T, N]; out may be onto."""
    x, out = view(x), view(out)  # looked at more than once
    of_x = layout(x)
    (num_rows, size), num_out = of_x.shape, layout(weight).shape[0]
    num_lines = size // (2 * LINE)
    num_warps = next((n for n in NUM_WARPS if num_lines <= n * AT_ONCE), 8)
    product = product_kernel(
        kind_of(of_x.dtype, "x"), num_rows > 8, num_warps, then, bias is not None, onto is not None
    )
    product[-(-num_out // COLUMNS), num_warps * WARP, external_stream(stream)](
        words(x), words(weight), elements(out if bias is None else bias), elements(out if onto is None else onto),
        elements(out), num_rows, num_lines, num_out, of_x.strides[0] // 4,
    )  # fmt: skip


@cache
def product_kernel(
    kind: Kind, is_tall: bool, num_warps: int, then: Activation | None, has_bias: bool, has_onto: bool
) -> Any:
    """is_tall: there are more than 8 rows of x."""
    HALVES = 2 if is_tall else 1
    ROWS = 8 * HALVES
    STRIDE = num_warps * AT_ONCE  # lines that a block has under way
    number, stored = reader(kind), kind.stored
    multiply = multiplier(kind, HALVES)
    activated = device_function(FUNCTIONS[then], fastmath=False)
    let_next_begin, wait_for_last = order_of_kernels()

    @device_function
    def load_row(into, i, x, at, is_row):
        """A lane's two pieces of a line of a row of x; zeros, if there is no such row."""
        for j in range(8):
            into[i, j] = uint32(0)
        if is_row:
            into[i, 0], into[i, 1], into[i, 2], into[i, 3] = load_16_new_bytes(x, at)
            into[i, 4], into[i, 5], into[i, 6], into[i, 7] = load_16_new_bytes(x, at + 16)

    @device_function
    def load_lines(w, weight, own, base, num_lines):
        """A lane's pieces of a warp's next lines; past the end of the row, of its last line, whose x is 0 then."""
        for i in range(AT_ONCE):
            at = int32(own + min(base + i * num_warps, num_lines - 1) * LINE)
            w[i, 0], w[i, 1], w[i, 2], w[i, 3] = load_16_bytes_now(weight, at)
            w[i, 4], w[i, 5], w[i, 6], w[i, 7] = load_16_bytes_now(weight, at + 16)

    def product(x, weight, bias, onto, out, num_rows, num_lines, num_out, row_words):
        let_next_begin()
        num_rows, num_lines, num_out, row_words = int32(num_rows), int32(num_lines), int32(num_out), int32(row_words)
        thread = int32(cuda.threadIdx.x)
        lane, warp = thread % WARP, thread // WARP
        g, c = lane // 4, lane % 4
        first = int32(cuda.blockIdx.x * COLUMNS)
        own = int32(min(first + g, num_out - 1) * num_lines * LINE + 4 * c)
        w = cuda.local.array((AT_ONCE, 8), uint32)
        low = cuda.local.array((AT_ONCE, 8), uint32)  # of rows 0 to 7 of x
        high = cuda.local.array((AT_ONCE, 8), uint32)  # and of rows 8 to 15
        acc = cuda.local.array((2, 4), float32)  # two, because a product waits for the one that it is added to
        for e in range(4):
            acc[0, e], acc[1, e] = float32(0), float32(0)
        for i in range(AT_ONCE):
            for j in range(8):
                high[i, j] = uint32(0)
        row, column = thread // COLUMNS, first + thread % COLUMNS  # of the number that this thread ends with
        is_mine = row < num_rows and thread < ROWS * COLUMNS and column < num_out
        result_at = int32(row * num_out + column)
        load_lines(w, weight, own, warp, num_lines)
        wait_for_last()
        added = bias[column] if has_bias and is_mine else stored(float32(0))
        under = onto[result_at] if has_onto and is_mine else stored(float32(0))
        for base in range(warp, num_lines, STRIDE):
            for i in range(AT_ONCE):
                line = int32(base + i * num_warps)
                at = int32(g * row_words + line * LINE + 4 * c)
                load_row(low, i, x, at, g < num_rows and line < num_lines)
                if HALVES == 2:
                    load_row(high, i, x, at + 8 * row_words, g + 8 < num_rows and line < num_lines)
            cuda.syncwarp()  # all of x is asked for before any is used
            for i in range(AT_ONCE):
                for j in range(0, 8, 2):
                    piece = (low[i, j], high[i, j], low[i, j + 1], high[i, j + 1])
                    multiply(acc, j // 2 % 2, piece, w[i, j], w[i, j + 1])
            if base + STRIDE < num_lines:
                load_lines(w, weight, own, base + STRIDE, num_lines)

        parts = cuda.shared.array((num_warps, ROWS, COLUMNS), float32)
        for half in range(HALVES):
            for e in range(2):
                parts[warp, g + 8 * half, 2 * c + e] = acc[0, 2 * half + e] + acc[1, 2 * half + e]
        cuda.syncthreads()
        if is_mine:
            total = number(added)
            for part in range(num_warps):
                total += parts[part, row, thread % COLUMNS]
            out[result_at] = stored(activated(total) + number(under))

    return kernel(product, fastmath=False, overlaps=True)


def gelu(x):
    inner = np.float32(math.sqrt(2.0 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return HALF * x * (ONE + float32(math.tanh(inner)))


def gelu_exact(x):
    return HALF * x * (ONE + float32(math.erf(x * np.float32(math.sqrt(0.5)))))


FUNCTIONS: dict[Activation | None, Any] = {
    None: lambda x: x,
    "gelu": gelu,
    "gelu_exact": gelu_exact,
    "relu": lambda x: np.float32(0) if x < 0 else x,  # NaN stays
}
