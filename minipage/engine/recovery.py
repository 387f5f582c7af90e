"""Recovery after a fault: a change that fails half way, whatever raises and wherever, is mended before anybody goes on.

    changes.make(change, mend)     one thread at a time; whatever `change()` raises, Ctrl-C too, `mend()` is called, and
                                   the error goes on

`mend` makes everything anew from the few things that count. It may be interrupted, too: then it is called again before
the next change.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from threading import RLock
from typing import TypeVar
from weakref import WeakSet

from minipage.errors import ConfigurationError

Result = TypeVar("Result")


class Changes:
    """The changes of one engine. `lock` keeps other threads out; the thread that has it may take it again."""

    def __init__(self) -> None:
        self.lock = RLock()
        self._is_torn = False  # a change has begun, and has neither come to its end nor been mended
        everywhere.add(self)

    @property
    def is_being_made(self) -> bool:
        """Whether one of the calls that have led here is a change of this engine."""
        return self._is_torn and self._depth() > 0

    def make(self, change: Callable[[], Result], mend: Callable[[], None]) -> Result:
        with self.lock:
            if self._is_torn:
                if self._depth() > 1:
                    raise ConfigurationError("one of the engine's parts has called it in the middle of a step.")
                mend()
            self._is_torn = True
            try:
                result = change()
                self._is_torn = False
                return result
            except BaseException:
                self._is_torn = True  # as it is, unless the interrupt came in the last moment
                mend()
                self._is_torn = False
                raise

    def _depth(self) -> int:
        """How many of the calls that have led here are changes of this engine."""
        depth, frame = 0, sys._getframe().f_back
        while frame:
            depth += frame.f_code is Changes.make.__code__ and frame.f_locals["self"] is self
            frame = frame.f_back
        return depth

    def after_fork(self) -> None:
        """In the new process: a thread that has not come along may have been in the middle of a change."""
        self._is_torn = self._is_torn or not self.lock.acquire(blocking=False)
        self.lock = RLock()


everywhere: WeakSet[Changes] = WeakSet()


def after_fork() -> None:
    for changes in everywhere:
        changes.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
