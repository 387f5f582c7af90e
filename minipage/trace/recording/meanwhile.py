"""While something is recorded or read: instances have other methods, and the garbage collector has less to do."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def few_collections() -> Iterator[None]:
    """Let the garbage collector leave alone what is there already.

    A trace is many small objects. They make the collector run, and it looks at every object there is, including the
    libraries' hundred thousand. That took more time than the recording itself.
    """
    if gc.get_freeze_count():  # somebody has done it before us, and may want it to stay
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def replaced(owner: object, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Let one instance have another method for a while: instance attributes hide the methods of the class."""
    own = vars(owner)
    before = {name: own[name]} if name in own else {}
    own[name] = method
    try:
        yield
    finally:
        del own[name]
        own.update(before)
