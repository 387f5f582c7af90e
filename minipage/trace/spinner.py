"""A sign of life on the terminal's error stream while something slow goes on; nothing where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console

PATIENCE = 0.3  # seconds that pass before it shows, so that what is quick does not flash


@contextmanager
def spinner(message: str) -> Iterator[None]:
    """Show `message` and something that turns while the block runs, if it runs for long."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    status = console.status(message)
    timer = Timer(PATIENCE, status.start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
