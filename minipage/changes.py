"""All or nothing: a change that is interrupted half way, by whatever and wherever, is mended before anybody goes on.

    with changes.mended_by(mend):     one thread at a time
        ...                           whatever raises in here, Ctrl-C included: `mend` is called, and the error goes on

`mend` makes everything anew from the few things that count. It may be interrupted, too: then it is called again, before
the next change begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock

from minipage.errors import ConfigurationError


class Changes:
    """The changes of one engine. `lock` keeps other threads out; the thread that has it may take it again."""

    def __init__(self) -> None:
        self.lock = RLock()
        self._is_inside = False  # a change is going on
        self._is_torn = False  # one was interrupted, or is going on

    @contextmanager
    def mended_by(self, mend: Callable[[], None]) -> Iterator[None]:
        with self.lock:
            if self._is_inside and self._is_torn:
                raise ConfigurationError("the engine is in the middle of a step, and one of its parts called it again.")
            try:
                self._is_inside = True
                if self._is_torn:
                    mend()
                self._is_torn = True
                yield
                self._is_torn = False
            except BaseException:
                mend()
                self._is_torn = False
                raise
            finally:
                self._is_inside = False
