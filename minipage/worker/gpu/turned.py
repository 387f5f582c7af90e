"""Rotation of q and k along with the writing of K and V: one kernel instead of two, for decodes of many sequences.

    q, k, v ─▶ rotate q, k ─▶ write k, v into their slots ─▶ attend      two launches, each of two or three microseconds
    q, k, v ─▶ [ rotate q; rotate and write k; write v ]  ─▶ attend      one

An architecture asks for the rotation, and then for attention, which writes first. So where this may be done, layers put
the rotation off until attention asks for it: nobody looks at q and k in between. (Of few sequences, attention itself
writes K and V.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from minipage.attention.cuda.cache import limiter
from minipage.attention.cuda.compat import cuda, device_function, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import elements, layout, view
from minipage.attention.cuda.kinds import Kind, kind_of, reader
from minipage.attention.cuda.ptx import order_of_kernels, quotient
from minipage.model.architecture import Array, Turn

THREADS = 256  # of a block
float32, int32 = types.float32, types.int32


class Later:
    """The rotation that is put off, if any may be."""

    def __init__(self) -> None:
        self._dtype: Any = None  # of the KV cache, while rotations may be put off
        self._turn: tuple[Array, Turn] | None = None  # q [T, H, D], and how it and k are rotated

    @contextmanager
    def permitted(self, is_permitted: bool, dtype: Any) -> Iterator[None]:
        """In this block rotations may be put off, of numbers that the KV cache has, too."""
        self._dtype, self._turn = dtype if is_permitted else None, None
        try:
            yield
        finally:
            self._dtype, self._turn = None, None

    def put_off(self, q: Array, turn: Turn) -> bool:
        """Whether it is put off. Where only a part of each head is rotated, it is not."""
        can_wait = self._dtype is not None and q.dtype == self._dtype and 2 * turn[0].shape[-1] == q.shape[-1]
        self._turn = (q, turn) if can_wait else None
        return can_wait

    def take(self) -> tuple[Array, Turn] | None:
        """What was put off, which is up to the caller now."""
        turn, self._turn = self._turn, None
        return turn


def launch_turn_and_write(
    q: Array, turn: Turn, k: Array, v: Array, k_cache: Array, v_cache: Array, slot_mapping: Array, stream: int = 0
) -> None:
    """Turn q [T, H, D] in place, and write K, turned, and V into their slots.

    k, v: [T, KH, D]; the last two axes of all three are contiguous. turn: cosines and sines [T, 1, D / 2]. The caches
    are of the same numbers; a token with a negative slot is not written.
    """
    q, k, v = view(q), view(k), view(v)  # looked at more than once
    where = layout(q)
    (num_tokens, num_heads, head_size), itemsize = where.shape, where.dtype.itemsize
    num_kv_heads = layout(k).shape[1]
    grid = num_tokens, -(-(num_heads + 2 * num_kv_heads) * head_size // 2 // THREADS)
    turn_kernel(kind_of(where.dtype, "q"))[grid, THREADS, external_stream(stream)](
        elements(q), elements(k), elements(v), *map(elements, turn), elements(k_cache), elements(v_cache),
        elements(slot_mapping), *(layout(each).strides[0] // itemsize for each in (q, k, v)),
        num_heads, num_kv_heads, head_size // 2,
    )  # fmt: skip


@cache
def turn_kernel(kind: Kind) -> Any:
    """A thread for each pair of numbers of each head of q, of k and of v."""
    number, stored, limited = reader(kind), kind.stored, limiter(kind)
    let_next_begin, wait_for_last = order_of_kernels()

    def turned(a, b, cosine, sine):
        return stored(a * cosine - b * sine), stored(b * cosine + a * sine)

    turned = device_function(turned, fastmath=False)

    def kept(x):
        """As the cache has a number."""
        return stored(limited(number(x)))

    kept = device_function(kept, fastmath=False)

    def turn_and_write(
        q, k, v, cosines, sines, k_cache, v_cache, slot_mapping, q_stride, k_stride, v_stride,
        num_heads, num_kv_heads, half,
    ):  # fmt: skip
        let_next_begin()
        token = int32(cuda.blockIdx.x)
        num_heads, num_kv_heads, half = int32(num_heads), int32(num_kv_heads), int32(half)
        item = int32(cuda.blockIdx.y * THREADS + cuda.threadIdx.x)
        head = quotient(item, half)
        pair = item - head * half
        wait_for_last()
        slot = slot_mapping[token]
        cosine, sine = number(cosines[token * half + pair]), number(sines[token * half + pair])
        if head < num_heads:
            at = token * q_stride + head * 2 * half + pair
            q[at], q[at + half] = turned(number(q[at]), number(q[at + half]), cosine, sine)
        elif head < num_heads + 2 * num_kv_heads and slot >= 0:
            is_k = head < num_heads + num_kv_heads
            head = int32(head - num_heads - (0 if is_k else num_kv_heads))
            to = (slot * num_kv_heads + head) * 2 * half + pair
            if is_k:
                at = token * k_stride + head * 2 * half + pair
                low, high = turned(number(k[at]), number(k[at + half]), cosine, sine)
                k_cache[to], k_cache[to + half] = kept(low), kept(high)
            else:
                at = token * v_stride + head * 2 * half + pair
                v_cache[to], v_cache[to + half] = kept(v[at]), kept(v[at + half])

    return kernel(turn_and_write, fastmath=False, overlaps=True)
