"""Shared memory of the simulator: it notices what a GPU tells nobody.

The threads of a block run at the same time. If two of them use one element, and at least one of them writes it, nobody
knows in which order, unless both pass a barrier in between. In the simulator there is an order, and the answer may well
be right; on a GPU it may be wrong once a day. So each element knows who has written it, and who has read it since:

    thread 0    writes x  |
    thread 5              |  reads x         fine: the bar is a barrier (`syncthreads`, or `syncwarp` within a warp)

    thread 0    writes x     |
    thread 5      reads x    |               a race: an error, whoever came first here

Two may be at it for all that where the order makes no difference: lanes of a warp that write the same number, and any
threads that add atomically. Then all of them have written it last.

Two more kinds of waiting belong to it. What was requested by a copy on its way (`cp.async`) is there only for those who
have waited for it, and for others after a barrier. And tensor cores that read shared memory themselves see only what
its writer has shown them, and a barrier after that.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

from greenlet import getcurrent


class Moment:
    """What one thread does between two barriers."""

    __slots__ = ("barriers", "block_barriers", "num_shown", "thread")

    def __init__(self, thread: Sharer, barriers: int = 0, block_barriers: int = 0) -> None:
        self.thread, self.num_shown = thread, len(thread.shown)
        self.barriers = barriers  # that this thread has passed
        self.block_barriers = block_barriers  # those of them that were the whole block's

    def may_be_while(self, other: Moment) -> bool:
        """Whether no barrier is between the two."""
        if self.thread.warp is other.thread.warp:
            return self.barriers == other.barriers and self.thread is not other.thread
        return self.block_barriers == other.block_barriers

    def is_over_in_warp(self, now: Moment) -> bool:
        return self.is_over_in_block(now) or (self.thread.warp is now.thread.warp and self.barriers != now.barriers)

    def is_over_in_block(self, now: Moment) -> bool:
        return self.block_barriers != now.block_barriers

    def clash(self, deed: str) -> str:
        return f"thread {self.thread.index} has {deed}, with no barrier in between"


class OnItsWay(Moment):
    """What a writer is until its copy is waited for."""

    __slots__ = ()

    def may_be_while(self, other: Moment) -> bool:
        return True

    def clash(self, deed: str) -> str:
        return f"is on its way: thread {self.thread.index} has requested it, and not waited for it"


class Sharer:
    """What a thread has to do with shared memory."""

    index: int  # in its block
    warp: Any

    def begin_block(self) -> None:
        self.shown: list[int] = []  # for each `show_tensor_cores`, how many barriers of the block came before it
        self.requested: list[tuple[SharedArray, int, Any]] = []  # since the last group: (array, place, number)
        self.groups: list[list[tuple[SharedArray, int, Any]]] = []  # that are on their way
        self.now = Moment(self)

    def pass_barrier(self, of_block: bool) -> None:
        self.now = Moment(self, self.now.barriers + 1, self.now.block_barriers + of_block)

    def show_tensor_cores(self) -> None:
        self.shown.append(self.now.block_barriers)
        self.now = Moment(self, self.now.barriers, self.now.block_barriers)

    def end_group(self) -> None:
        self.groups.append(self.requested)
        self.requested = []

    def wait_for_groups(self, except_last: int) -> None:
        while len(self.groups) > except_last:
            for array, place, number in self.groups.pop(0):
                array.numbers[place], array.writes[place] = number, [(self.now, number)]


ADDED = "added"  # atomically


def makes_no_difference(writer: Moment, other: Any, now: Moment, number: Any) -> bool:
    """Whether two writes may be at the same time: both add, or lanes of a warp write the same number, perhaps NaN."""
    if isinstance(writer, OnItsWay):
        return False
    if other is ADDED or number is ADDED:
        return other is number
    return writer.thread.warp is now.thread.warp and bool(number == other or (number != number and other != other))


class SharedArray:
    """An array of any shape in the shared memory of a block, made in this line. Its elements lie in a row."""

    __slots__ = ("kind", "line", "ndim", "numbers", "poison", "readers", "shape", "writes")

    def __init__(self, line: str, shape: tuple[int, ...], kind: Any, poison: Any) -> None:
        self.line, self.shape, self.ndim, self.kind, self.poison = line, shape, len(shape), kind, poison
        size = math.prod(shape)
        self.numbers: list[Any] = [poison] * size
        # The last writes of each: when, and the number, or ADDED. And when it was read since.
        self.writes: list[list[tuple[Moment, Any]]] = [[]] * size
        self.readers: list[list[Moment]] = [[]] * size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        place, now = self.place_of(index), getcurrent().now
        for writer, _ in self.writes[place]:
            if writer.may_be_while(now):
                self.complain(now, "reads", index, writer.clash("written"))
        readers = self.readers[place]
        if not readers or readers[-1].block_barriers != now.block_barriers:
            self.readers[place] = [now]
        elif readers[-1] is not now:
            readers.append(now)
        return self.numbers[place]

    def __setitem__(self, index: Any, number: Any) -> None:
        number = number if type(number) is self.kind else self.kind(number)
        self.numbers[self.write(index, number)] = number

    def add(self, index: Any, number: Any) -> Any:
        """Atomically: others may do so at the same time. Returns what was there."""
        place = self.write(index, ADDED)
        before = self.numbers[place]
        self.numbers[place] = self.kind(before + number)
        return before

    def write(self, index: Any, number: Any) -> int:
        """Note that it is written now, if it may be; its place."""
        place, now = self.place_of(index), getcurrent().now
        writes, readers = self.writes[place], self.readers[place]
        for writer, other in writes:
            if writer.may_be_while(now) and not makes_no_difference(writer, other, now, number):
                self.complain(now, "writes", index, writer.clash("written"))
        for reader in readers:
            if reader.may_be_while(now):
                self.complain(now, "writes", index, reader.clash("read"))
        # What is over is forgotten. Other warps may add now, too, so an add leaves all that they must not meet.
        is_over = Moment.is_over_in_block if number is ADDED else Moment.is_over_in_warp
        self.writes[place] = [one for one in writes if not is_over(one[0], now)] + [(now, number)]
        if readers:
            self.readers[place] = [reader for reader in readers if not is_over(reader, now)]
        return place

    def request(self, index: Any, number: Any) -> None:
        """It is there when the thread that asks for it has waited for it; nobody may use it before."""
        thread = getcurrent()
        place = self.write(index, self.poison)
        self.numbers[place], self.writes[place] = self.poison, [(OnItsWay(thread), self.poison)]
        thread.requested.append((self, place, number))

    def read_by_tensor_cores(self, index: Any) -> Any:
        now = getcurrent().now
        for writer, _ in self.writes[self.place_of(index)]:
            shown = writer.thread.shown[writer.num_shown :]  # since it was written; the first will do
            if not shown or shown[0] == now.block_barriers:
                self.complain(
                    now, "has tensor cores read", index, f"thread {writer.thread.index} has not shown in time"
                )
        return self[index]

    def place_of(self, index: Any) -> int:
        if self.ndim == 1 and index >= 0:  # the list itself says if it is past the end
            return index
        places = index if isinstance(index, tuple) else (index,)
        if len(places) != self.ndim or not all(0 <= i < size for i, size in zip(places, self.shape)):
            raise IndexError(f"index {index} is outside an array of shape {self.shape}")
        place = 0
        for i, size in zip(places, self.shape):
            place = place * size + int(i)  # a small type of NumPy would wrap around
        return place

    def complain(self, now: Moment, deed: str, index: Any, why: str) -> NoReturn:
        place = ", ".join(str(i) for i in (index if isinstance(index, tuple) else [index]))
        what = f"[{place}] of the shared array of {self.line}"
        raise RuntimeError(f"thread {now.thread.index} {deed} {what}, which {why}")
