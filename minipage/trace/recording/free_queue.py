"""The order of the free queue in a trace, where it does not follow from what the pool did (memory/eviction.py).

With lru whatever is freed goes to the end, and a trace need not say so. Another order may put it anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class QueueWatch:
    """Knows where whoever replays a trace expects each free block of a pool, and notes the difference."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self._is_lru = type(getattr(pool, "_free_queue", None)) is OrderedDict  # then a look takes no time
        self.restart()

    def restart(self) -> None:
        """The trace has just been told the whole queue."""
        self._expected = dict.fromkeys(() if self._is_lru else self.pool.free_queue)

    def note(self, operation: str, blocks: list[int]) -> None:
        """What the pool has just done to blocks."""
        for block in () if self._is_lru else blocks:
            if self.pool.ref_count(block) > 0:
                self._expected.pop(block, None)
            elif operation == "free":
                self._expected[block] = None

    def take(self) -> list[list[Any]]:
        """An operation for the trace: these blocks have the places of each other, in this order. Usually none."""
        queue = () if self._is_lru else self.pool.free_queue
        moved = [block for block, expected in zip(queue, self._expected, strict=True) if block != expected]
        self._expected = dict.fromkeys(queue)
        return [["order", *moved]] if moved else []
