"""All or nothing: a change that is interrupted half way, by whatever and wherever, is mended before anybody goes on.

    changes.make(change, mend)     one thread at a time; whatever `change()` raises, Ctrl-C too, `mend()` is called, and
                                   the error goes on

`mend` makes everything anew from the few things that count. It may be interrupted, too: then it is called again before
the next change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import RLock
from typing import TypeVar

from minipage.errors import ConfigurationError

Result = TypeVar("Result")


class Changes:
    """The changes of one engine. `lock` keeps other threads out; the thread that has it may take it again."""

    def __init__(self) -> None:
        self.lock = RLock()
        self._is_torn = False  # a change has begun, and has neither come to its end nor been mended

    def make(self, change: Callable[[], Result], mend: Callable[[], None]) -> Result:
        with self.lock:
            if self._is_torn:
                if self._is_being_made():
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

    def _is_being_made(self) -> bool:
        """Whether one of the calls that have led here is a change of the same engine, other than the latest."""
        frame = sys._getframe().f_back
        while frame and (frame := frame.f_back):
            if frame.f_code is Changes.make.__code__ and frame.f_locals["self"] is self:
                return True
        return False
