"""Lesson 10: what comes back is as near as int8 can be, whatever the size of the numbers."""

import numpy as np

from minipage.learn.graders.common import every, expect
from minipage.learn.graders.numbers import Untouched, assert_close
from minipage.learn.judge import Wrong

SIZES = (1.0, 1e-30, 1e-9, 1e-6, 1e-3, 1e4, 1e30)  # of a row's largest number: nothing is too small to be kept


def rows_of(seed, n, width):
    """[n, width] rows of very different sizes, and often one of zeros."""
    rng = np.random.default_rng([seed, n, width])
    rows = rng.integers(-1000, 1001, (n, width)) / 1000  # [n, D]
    rows *= rng.choice(SIZES if seed else SIZES[:1], (n, 1))
    if seed % 3 == 1:
        rows[rng.integers(n)] = 0
    return rows.astype(np.float32)  # [n, D]


def two_arrays(result, names):
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise Wrong(f"Two arrays come back: ({names}).", f"({names})", result)
    if not all(isinstance(array, np.ndarray) for array in result):
        raise Wrong(f"Two arrays of NumPy's come back: ({names}).", np.ndarray, [type(array) for array in result])
    return [np.asarray(array) for array in result]  # not of classes of their own any more


@every(seed=range(12), n=range(1, 4), width=range(1, 6))
def test_10_1_quantize_rows(impl, seed, n, width):
    check_quantized(impl, rows_of(seed, n, width))


def test_10_1_very_small_and_very_large_rows(impl):
    rows = [[4e-36, -2e-36, 1e-36], [1e36, 2e36, -1e36], [1.0, -3.0, 2.0]]
    for row in rows:
        check_quantized(impl, np.array([row], np.float32))
    check_quantized(impl, np.array(rows, np.float32))


def check_quantized(impl, rows):
    """rows: [n, D]"""
    impl.diary.begin()
    impl.diary.note(f"codes, scales = quantize_rows({rows.tolist()})")
    lent = Untouched(rows=rows)
    with np.errstate(divide="raise", invalid="raise", over="ignore", under="ignore"):
        try:
            result = impl.quantize_rows(rows)
        except FloatingPointError as error:
            why = (
                "A row of zeros has the scale 0, and must not be divided by it: 0 / 0 is NaN, which no int8 stands for."
            )
            raise Wrong(f"{why} Divide by 1 there: np.where(scales > 0, scales, 1).") from error
    codes, scales = two_arrays(result, "codes, scales")
    lent.check()
    expect(
        "codes.dtype, scales.dtype", (str(codes.dtype), str(scales.dtype)), ("int8", "float32"), "int8, and float32."
    )
    expect(
        "codes.shape, scales.shape", (codes.shape, scales.shape), (rows.shape, rows.shape[:1]), "A scale for each row."
    )
    exact = rows.astype(float)  # [n, D]
    due = np.abs(exact).max(axis=1) / 127  # [n]
    if not (np.abs(scales - due) <= 5e-7 * due).all():  # NaN fails, too
        why = "The scale of a row is its largest magnitude / 127, so that this number just fits; each row has its own."
        why += " Nothing is added to it, and no row is too small to have one." if np.abs(rows).max() < 1e-2 else ""
        raise Wrong(why, due.tolist(), scales.tolist(), "scales")
    steps = exact / np.where(due > 0, due, 1)[:, None]  # [n, D]; a code is the nearest whole number
    if not (np.abs(codes - steps) <= 0.5001).all() or np.abs(codes.astype(int)).max() > 127:
        why = "A code is number / scale, rounded to the nearest: astype alone cuts towards 0. A row of 0 stays 0."
        raise Wrong(why, np.rint(steps).astype(int).tolist(), codes.tolist(), "codes")


@every(seed=range(4), n=range(1, 4), width=range(1, 4))
def test_10_2_dequantize_rows(impl, seed, n, width):
    rng = np.random.default_rng([seed, n, width])
    codes = rng.integers(-127, 128, (n, width)).astype(np.int8)  # [n, D]
    scales = (np.arange(n) + 1) / 4 * rng.choice(SIZES if seed else SIZES[:1], n)  # [n]
    scales = scales.astype(np.float32)  # [n]
    if seed == 3:
        scales[0] = 0
    impl.diary.begin()
    impl.diary.note(f"dequantize_rows(codes={codes.tolist()}, scales={scales.tolist()})")
    lent = Untouched(codes=codes, scales=scales)
    with np.errstate(all="ignore"):
        got = impl.dequantize_rows(codes, scales)
    lent.check()
    due = codes.astype(float) * scales.astype(float)[:, None]  # [n, D]
    why = "Each row's codes times its own scale. Multiplied as int8, 100 * 2 would not fit: make them float32 first."
    assert_close("the result", got, due, why, tolerance=1e-6)
    expect("the dtype", str(got.dtype), "float32", "Attention computes in float32.")


def check_bytes(impl, block_size, num_layers, num_kv_heads, head_size, quantized):
    arguments = (block_size, num_layers, num_kv_heads, head_size, bool(quantized))
    impl.diary.begin()
    impl.diary.note(f"bytes_per_block(block_size, num_layers, num_kv_heads, head_size, quantized) with {arguments}")
    due = 0
    for _ in range(2 * block_size * num_layers * num_kv_heads):  # a row of K or of V
        due += head_size + 4 if quantized else 4 * head_size
    why = "A block holds K and V (2), of every token, in every layer, in every head: that many rows."
    why += " A row has head_size bytes, and 4 of its scale." if quantized else " A row has 4 * head_size bytes."
    expect("the bytes of a block", impl.bytes_per_block(*arguments), due, why)


def test_10_3_the_examples(impl):
    for quantized in (False, True):
        check_bytes(impl, 16, 12, 12, 64, quantized)


@every(
    block_size=range(1, 4), num_layers=range(1, 3), num_kv_heads=range(1, 3), head_size=range(1, 5), quantized=range(2)
)
def test_10_3_bytes_per_block(impl, block_size, num_layers, num_kv_heads, head_size, quantized):
    check_bytes(impl, block_size, num_layers, num_kv_heads, head_size, quantized)
