"""Swapping beside computing: blocks travel to and from pinned memory in a stream of their own.

    main stream   ... step n ────▶ swap_out │ step n+1 ...   (its blocks may be overwritten only after `wait`)
                                      │     ▲
    side stream                       ▼─────┘
                                   copy_blocks, at the speed of the bus

The GPU reads and writes the computer's memory itself, so that all blocks and layers are one launch again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minipage.attention.cuda.cache import Blocks, copy_blocks
from minipage.attention.cuda.compat import SIMULATED, cuda, external_stream
from minipage.memory import BlockCopy


class SideStream:
    """A stream that copies blocks while a main one computes. main: the handle of a CUDA stream."""

    def __init__(self, main: int = 0) -> None:
        self._main = external_stream(main) or cuda.default_stream() if not SIMULATED else 0
        self._side: Any = 0 if SIMULATED else cuda.stream()
        self._event = cuda.event()

    def copy_blocks(self, source: Blocks, destination: Blocks, copies: Sequence[BlockCopy]) -> None:
        """Copy as `minipage.attention.cuda.copy_blocks`, after all that the main stream has been given so far."""
        if copies:
            self._event.record(self._main)
            self._event.wait(self._side)
            copy_blocks(source, destination, copies, int(self._side))

    def wait(self) -> None:
        """What the main stream is given from now on waits for the copies: blocks swapped in can be read then, and those
        swapped out overwritten."""
        self._event.record(self._side)
        self._event.wait(self._main)
