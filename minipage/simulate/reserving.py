"""The baselines under the same engine and clock: places that are reserved, and batches that start together.

`ReservedTable` has the face of a BlockTable, so the real scheduler and engine run on it: a request's sequences get a
place each when it is admitted, as large as a rule says (baselines.py), and keep it. Nothing is shared: who forks
copies.
`static_batches` needs no engine: a batch is filled, runs until its longest text is done, and only then comes the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from minipage.errors import InvalidRequestError, OutOfBlocksError
from minipage.memory import BlockCopy, BlockPool, BlockTable
from minipage.scheduling import Admission, Scheduler, SequenceGroup
from minipage.simulate.baselines import BuddyAllocator, ReservationRule
from minipage.simulate.cost import CostModel, Work
from minipage.simulate.workload import Arrival


class ReservingPool(BlockPool):
    """Slots in one piece for each sequence. To the scheduler it is a pool of blocks of one token."""

    def __init__(self, num_slots: int, rule: ReservationRule, max_model_len: int) -> None:
        super().__init__(num_slots, block_size=1)
        self.rule = rule
        self.max_model_len = max_model_len
        self.allocator = BuddyAllocator(num_slots)
        self.num_copied_tokens = 0  # by those who have forked, since somebody asked last

    def table_of(self, arrival: Arrival) -> Callable[[], BlockTable]:
        size = self.rule(arrival.num_prompt_tokens, arrival.num_output_tokens, self.max_model_len)
        places = Places(self, size, arrival.n)
        return lambda: ReservedTable(places)


class Places:
    """A place for each sequence of a request: taken together when it is admitted, given back with the last."""

    def __init__(self, pool: ReservingPool, size: int, count: int) -> None:
        self.pool = pool
        self.size = size
        self.count = count
        self.starts: list[int] = []
        self.num_holders = 0

    def take(self) -> bool:
        """Whether there was room for all."""
        try:
            for _ in range(self.count):
                self.starts.append(self.pool.allocator.allocate(self.size))
        except OutOfBlocksError:
            self.give_back()
            return False
        return True

    def give_back(self) -> None:
        while self.starts:
            self.pool.allocator.free(self.starts.pop())


class ReservedTable(BlockTable):
    """A sequence's place. It never needs another slot, and it shares none."""

    def __init__(self, places: Places) -> None:
        super().__init__(places.pool)
        self.places = places

    def blocks_to_allocate(self, num_tokens: int) -> int:
        return 0

    def shared_tail(self) -> int | None:
        return None

    def append(self, num_tokens: int) -> list[BlockCopy]:
        if self.num_tokens == 0 and num_tokens:
            self.places.num_holders += 1
        self.num_tokens += num_tokens
        return []

    def fork(self) -> BlockTable:
        """What vLLM shares is copied here, into a place of its own."""
        twin = ReservedTable(self.places)
        twin.append(self.num_tokens)
        self.places.pool.num_copied_tokens += self.num_tokens
        return twin

    def free(self) -> None:
        if self.num_tokens:
            self.num_tokens = 0
            self.places.num_holders -= 1
            if self.places.num_holders == 0:
                self.places.give_back()


class ReservingScheduler(Scheduler):
    """First come, first served, into places that are reserved; nobody is ever preempted."""

    def add(self, group: SequenceGroup) -> None:
        table, pool = group.leader.block_table, self.block_pool
        assert isinstance(table, ReservedTable) and isinstance(pool, ReservingPool)
        wanted = table.places.size
        if not pool.num_used and wanted * table.places.count > pool.num_blocks:
            raise InvalidRequestError(
                f"{table.places.count} places of {wanted:,} slots are more than a memory of {pool.num_blocks:,} has."
            )
        super().add(group)

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        table = group.leader.block_table
        assert isinstance(table, ReservedTable)
        has_seat = group.max_num_seqs <= self._seats_left()
        return Admission.NOW if has_seat and table.places.take() else Admission.LATER


class Finished(NamedTuple):
    """A request that was served in a batch."""

    arrival: Arrival
    first_token_time: float
    finished_time: float


def static_batches(arrivals: Iterable[Arrival], batch_size: int, cost: CostModel) -> Iterator[Finished]:
    """Serve as FasterTransformer did behind a queue: up to `batch_size` of those who wait form a batch, padded to its
    longest prompt; it ends with its longest text, and then all of it is handed out."""
    now = 0.0
    coming = iter(arrivals)
    waiting: list[Arrival] = []
    while True:
        if not waiting:
            waiting += islice(coming, 1)
            if not waiting:
                return
        now = max(now, waiting[0].time)
        for arrival in coming:
            waiting.append(arrival)
            if arrival.time > now:
                break
        batch = [arrival for arrival in waiting[:batch_size] if arrival.time <= now]
        del waiting[: len(batch)]
        count, prompt = len(batch), max(arrival.num_prompt_tokens for arrival in batch)
        now += cost.seconds(Work(count * prompt, count, count, count * prompt, count * prompt * (prompt + 1) // 2))
        first_token_time = now
        for length in range(prompt + 1, prompt + max(arrival.num_output_tokens for arrival in batch)):
            now += cost.seconds(Work(count, count, count, count * length, count * length))
        for arrival in batch:
            yield Finished(arrival, first_token_time, now)
