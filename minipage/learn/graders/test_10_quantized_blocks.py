"""Lesson 10: what comes back is as near as int8 can be."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minipage.learn.graders.common import every, expect, programs
from minipage.learn.judge import Wrong

numbers = st.integers(-1000, 1000).map(lambda n: n / 8)
tables = st.integers(1, 3).flatmap(
    lambda d: st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=1, max_size=3)
)


@programs(80)
@given(rows=tables)
def test_10_1_quantize_rows(impl, rows):
    impl.diary.begin()
    impl.diary.note(f"codes, scales = quantize_rows({rows})")
    rows = np.array(rows, np.float32)  # [n, D]
    given_rows = rows.copy()
    with np.errstate(all="ignore"):
        result = impl.quantize_rows(given_rows)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise Wrong("Two arrays come back: (codes, scales).", "(codes, scales)", result)
    codes, scales = np.asarray(result[0]), np.asarray(result[1])
    expect(
        "codes.dtype, scales.dtype", (str(codes.dtype), str(scales.dtype)), ("int8", "float32"), "int8, and float32."
    )
    expect(
        "codes.shape, scales.shape", (codes.shape, scales.shape), (rows.shape, rows.shape[:1]), "A scale for each row."
    )
    largest = np.abs(rows).max(axis=1)  # [n]
    if np.isnan(scales).any() or (np.abs(scales - largest / 127) > 1e-6 * (1 + largest)).any():
        why = "The scale of a row is its largest magnitude / 127, so that this number just fits; each row has its own."
        raise Wrong(why, (largest / 127).tolist(), scales.tolist(), "scales")
    due = np.rint(rows / np.where(largest > 0, largest / 127, 1)[:, None]).astype(int)  # [n, D]
    why = "A code is number / scale, rounded to the nearest: astype alone cuts towards 0. A row of 0 stays 0."
    near = np.abs(codes.astype(int) * scales[:, None] - rows) <= scales[:, None] * 0.501 + 1e-6
    if not near.all():
        raise Wrong(why, due.tolist(), codes.tolist(), "codes")
    if not np.array_equal(given_rows, rows):
        raise Wrong("The rows that were handed in were changed; they belong to somebody else.")


@every(n=range(1, 4), width=range(1, 4))
def test_10_2_dequantize_rows(impl, n, width):
    codes = (np.arange(n * width).reshape(n, width) * 40 - 100).astype(np.int8)  # [n, D]
    scales = (np.arange(n) + 1).astype(np.float32) / 4  # [n]
    impl.diary.begin()
    impl.diary.note(f"dequantize_rows(codes={codes.tolist()}, scales={scales.tolist()})")
    got = np.asarray(impl.dequantize_rows(codes, scales))
    due = codes.astype(np.float64) * scales[:, None]  # [n, D]
    why = "Each row's codes times its own scale. Multiplied as int8, 100 * 2 would not fit: make them float32 first."
    if got.shape != due.shape or (np.abs(got - due) > 1e-5).any():
        raise Wrong(why, due.tolist(), got.tolist(), "the result")
    expect("the dtype", str(got.dtype), "float32", "Attention computes in float32.")


@every(
    block_size=range(1, 4), num_layers=range(1, 3), num_kv_heads=range(1, 3), head_size=range(1, 5), quantized=range(2)
)
def test_10_3_bytes_per_block(impl, block_size, num_layers, num_kv_heads, head_size, quantized):
    arguments = (block_size, num_layers, num_kv_heads, head_size, bool(quantized))
    impl.diary.begin()
    impl.diary.note(f"bytes_per_block(block_size, num_layers, num_kv_heads, head_size, quantized) with {arguments}")
    due = 0
    for _ in range(2 * block_size * num_layers * num_kv_heads):  # a row of K or of V
        due += head_size + 4 if quantized else 4 * head_size
    why = "A block holds K and V (2), of every token, in every layer, in every head: so many rows."
    why += " A row has head_size bytes, and 4 of its scale." if quantized else " A row has 4 * head_size bytes."
    expect("the bytes of a block", impl.bytes_per_block(*arguments), due, why)
