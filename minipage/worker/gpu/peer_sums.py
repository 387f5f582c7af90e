"""Sums of a few rows between the GPUs of one host, in one kernel with what comes next: x + the sum, and its norm.

A sum of some kilobytes is all latency: who tells whom that a part is there, and who asks for it then. So here nobody
asks. Every rank writes its part into the others' inboxes, which are full of a word that no part has: EMPTY. Who waits
for a part looks into its own inbox until no word of it is EMPTY, takes it out and makes the place EMPTY again.

    rank 0   part ─┬───▶ inbox of rank 1  [ word word EMPTY EMPTY ... ]     x + part 0 + part 1 ─▶ x ─▶ norm ─▶ h
    rank 1   part ─┴───▶ inbox of rank 0  [ word EMPTY word word ... ]      the same, bit by bit

An inbox has two halves, for sums of odd and of even numbers: who has got all parts of sum 8 knows that everybody has
done with sum 7, so sum 9 may take its place. Each row has a count of its own, which the kernel keeps, so a CUDA graph
can be replayed. (NCCL's protocol LL sends the number of the sum along with every word, so that nothing has to be
emptied. That is twice as many bytes, and of 32 rows bytes matter.)

A rank that is lost is waited for until `stop` is called. Without that, after minutes, the kernel ends all that this
process does on the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minipage.attention.cuda.compat import SIMULATED, cuda, device_function, external_stream, kernel, types
from minipage.attention.cuda.device_arrays import elements, layout, view, words
from minipage.attention.cuda.kinds import Kind, kind_of
from minipage.attention.cuda.ptx import (
    bits_of_float,
    load_16_bytes_now,
    load_16_new_bytes,
    look_at_4_bytes,
    look_at_16_bytes,
    order_of_kernels,
    send_16_bytes,
    store_16_bytes,
    trap,
)
from minipage.model.architecture import Array
from minipage.worker.gpu.fused import MOST_THREADS, PIECE, WARP, current_stream, piece_norm

float32, int32, uint32 = types.float32, types.int32, types.uint32
MOST_ROWS = 64  # of a sum
ROW = MOST_THREADS * PIECE // 4  # words of a row in an inbox: of the longest, so that rows do not mix
EMPTY = 0x80008000  # -0.0 twice in two bytes each, for which 0.0 is sent; as float32, -4.6e-41
GLANCES = 16 if SIMULATED else 4096  # into the inbox; then a look whether to stop, which takes longer
MOST_GLANCES = 2**28  # some minutes


class Norm(NamedTuple):
    """What comes after a sum."""

    weight: Array  # [C]
    bias: Array | None  # [C]
    epsilon: float
    is_centered: bool  # the mean is subtracted before


class Inboxes(NamedTuple):
    """What one rank has for its sums; all are made once."""

    own: Array  # [2 * size * MOST_ROWS * ROW] int32, at first EMPTY; see empty_inbox
    addresses: Array  # [size] int64, of the inboxes of all ranks, as this GPU sees them
    counts: Array  # [MOST_ROWS] int32, sums of each row; at first 0
    stop: Array  # [1] int32, at first 0, where the host can write at any time: if not 0, nobody is waited for
    handles: Sequence[Any] = ()  # of the others' inboxes, each of them open

    def close(self) -> None:
        """No kernel may run that writes to the others."""
        for handle in self.handles:
            handle.close()


class PeerSums:
    """The sums of one rank. All ranks ask for the same, in the same order."""

    def __init__(self, rank: int, inboxes: Inboxes) -> None:
        self.rank = rank
        self.inboxes = inboxes

    def add_up(self, part: Array) -> Array:
        """[T, C] -> [T, C], the sum of everybody's part."""
        total = part.new_empty(part.shape)  # [T, C]
        launch_sum(part, None, None, total, total, self.inboxes, self.rank, current_stream())
        return total

    def add_onto(self, x: Array, part: Array, norm: Norm | None) -> Array:
        """Add the sum of everybody's part [T, C] to x [T, C], where it is. Returns norm(x), or without one x."""
        h = x if norm is None else x.new_empty(x.shape)  # [T, C]
        launch_sum(part, x, norm, x, h, self.inboxes, self.rank, current_stream())
        return h

    def stop(self) -> None:
        """From now on nobody is waited for, whatever comes out."""
        self.inboxes.stop[0] = 1


def empty_inbox(size: int) -> np.ndarray:
    """[2 * ranks * MOST_ROWS * ROW] int32, on the host."""
    return np.full(2 * size * MOST_ROWS * ROW, EMPTY - 2**32, np.int32)


def can_add(part: Array) -> bool:
    """Whether there is a kernel for part [T, C]: a few rows, one after the other, in whole pieces."""
    num_bytes = part.shape[-1] * part.element_size()
    is_whole = num_bytes % PIECE == 0 and num_bytes <= MOST_THREADS * PIECE
    return bool(
        is_whole
        and part.ndim == 2
        and 0 < len(part) <= MOST_ROWS
        and part.is_contiguous()
        and part.data_ptr() % PIECE == 0
        and part.is_floating_point()
        and part.element_size() <= 4
    )


def launch_sum(
    part: Array, onto: Array | None, norm: Norm | None, x: Array, h: Array, inboxes: Inboxes, rank: int, stream: int = 0
) -> None:
    """x = onto + the sum of everybody's part, and h = norm(x), each [T, C]; x may be onto, and h without a norm x."""
    part, x = view(part), view(x)  # looked at more than once
    (num_rows, size), dtype = layout(part).shape, layout(part).dtype
    num_pieces = size * dtype.itemsize // PIECE
    (num_ranks,) = layout(inboxes.addresses).shape
    kind = kind_of(dtype, "part")
    weight = x if norm is None else norm.weight
    bias = weight if norm is None or norm.bias is None else norm.bias
    how = norm and (norm.is_centered, norm.bias is not None)
    sum_kernel(kind, num_ranks, onto is not None, how)[
        num_rows, -(-num_pieces // WARP) * WARP, external_stream(stream)
    ](
        words(part), words(x if onto is None else onto), words(weight), words(bias), words(x), words(h),
        words(inboxes.own), elements(inboxes.addresses), words(inboxes.counts), words(inboxes.stop),
        rank, num_pieces, size, np.float32(norm.epsilon if norm else 0),
    )  # fmt: skip


@cache
def sum_kernel(kind: Kind, num_ranks: int, has_onto: bool, how: tuple[bool, bool] | None) -> Any:
    """A block for each row, and in it a thread for each piece. how: the norm's is_centered, and whether it has a bias;
    None: there is no norm."""
    number, stored, PER_WORD = kind.number, kind.stored, kind.per_word
    has_norm, has_bias = how is not None, how is not None and how[1]
    nothing = (uint32(0),) * 4
    norm_of_piece = piece_norm(kind, *(how or (False, False)))
    let_next_begin, wait_for_last = order_of_kernels()

    @device_function
    def filled(word):
        """What is added up of a word, by everybody."""
        return uint32(0) if word == uint32(EMPTY) else word

    @device_function
    def receive(inbox, at, stop):
        """A piece, once all of it has come."""
        piece = look_at_16_bytes(inbox, at)
        glances = int32(0)
        while (
            piece[0] == uint32(EMPTY) or piece[1] == uint32(EMPTY)
            or piece[2] == uint32(EMPTY) or piece[3] == uint32(EMPTY)
        ):  # fmt: skip
            glances = int32(glances + 1)
            if glances % GLANCES == 0 and look_at_4_bytes(stop, 0) != 0:
                break
            if glances == MOST_GLANCES:
                trap()
            piece = look_at_16_bytes(inbox, at)
        store_16_bytes(inbox, at, (uint32(EMPTY), uint32(EMPTY), uint32(EMPTY), uint32(EMPTY)))
        return piece

    def packed(sums, j):
        """The j-th word of a piece."""
        if PER_WORD == 1:
            return bits_of_float(sums[j, 0])
        return uint32(uint32(stored(sums[j, 1])) << 16 | uint32(stored(sums[j, 0])))

    packed = device_function(packed, fastmath=False)

    @device_function
    def add(sums, piece):
        for j in range(4):
            for i in range(PER_WORD):
                sums[j, i] += number(piece[j], i)

    def add_up(part, onto, weight, bias, x, h, inbox, addresses, counts, stop, rank, num_pieces, size, epsilon):
        let_next_begin()
        thread, row = int32(cuda.threadIdx.x), int32(cuda.blockIdx.x)
        piece = min(thread, int32(num_pieces) - 1)
        w = load_16_bytes_now(weight, 4 * piece) if has_norm else nothing
        b = load_16_bytes_now(bias, 4 * piece) if has_bias else w
        wait_for_last()
        place = 4 * (row * num_pieces + piece)
        own = load_16_new_bytes(part, place)
        own = filled(own[0]), filled(own[1]), filled(own[2]), filled(own[3])
        count = uint32(look_at_4_bytes(counts, row) + uint32(1))
        room = (count % 2 * num_ranks) * MOST_ROWS + row  # in an inbox, in rows, for the part of rank 0
        sums = cuda.local.array((4, 2), float32)
        for j in range(4):
            sums[j, 0], sums[j, 1] = float32(0), float32(0)
        if thread < num_pieces:
            for step in range(1, num_ranks):
                other = (rank + step) % num_ranks
                to = addresses[other] + 4 * ((room + rank * MOST_ROWS) * ROW + 4 * piece)
                send_16_bytes(to, own)
            under = load_16_new_bytes(onto, place) if has_onto else nothing
            for other in range(num_ranks):  # in the same order in all of them
                if other == rank:
                    add(sums, own)
                else:
                    add(sums, receive(inbox, (room + other * MOST_ROWS) * ROW + 4 * piece, stop))
            add(sums, under)
        cuda.syncthreads()  # all threads have seen the count
        if thread == 0:
            counts[row] = count
        result = packed(sums, 0), packed(sums, 1), packed(sums, 2), packed(sums, 3)
        if thread < num_pieces:
            store_16_bytes(x, place, result)
        if has_norm:
            result = norm_of_piece(result, w, b, thread < num_pieces, size, epsilon)
            if thread < num_pieces:
                store_16_bytes(h, place, result)

    return kernel(add_up, fastmath=False, overlaps=True)
