"""A sign of life while something slow goes on, which says what that is. Nothing where nobody watches.

The slow things are done where they always were; it is the sign that has a thread of its own. Usually it is a
kernel that is compiled on a new machine, and numba tells whoever asks which kernel that is.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread
from typing import Any, TypeVar

from rich.console import Console
from rich.text import Text

from minipage.trace.playing.keys import Keys, leave_if_asked

PATIENCE = 0.5  # seconds that pass before it shows, so that what is quick does not flash
BETWEEN = 0.1  # seconds between two looks at what is going on

T = TypeVar("T")


@contextmanager
def signs_of_life(
    message: str, show: Callable[[str], object], hide: Callable[[], object] = lambda: None
) -> Iterator[Callable[[str], object]]:
    """Call `show` with what is going on, again and again, from another thread, if the block runs for long; then `hide`.

    The block may say that something else is going on now: `as say`, and say("...").
    """
    over, messages = Event(), [message]

    compiling: list[str] = []
    with interrupts_kept(compiling) as raise_if_pressed, compilations(compiling, raise_if_pressed):

        def look() -> None:
            pause = PATIENCE
            while not over.wait(pause):
                kernel = next(iter(compiling), "")  # the first: what it calls is compiled with it
                show(f"compiling the kernel `{kernel}`, once on each machine" if kernel else messages[-1])
                pause = BETWEEN

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield messages.append
        finally:
            compiling.append("")  # no kernel; but from here on Ctrl-C has to wait, or the sign would stay for ever
            over.set()
            thread.join()
            hide()


@contextmanager
def compilations(names: list[str], when_over: Callable[[], object]) -> Iterator[None]:
    """Keep the names of what numba is compiling in a list, the outermost first; after it `when_over` is called."""
    if "numba" not in sys.modules:  # then nothing is compiled, and to load it takes half a second
        yield
        return
    import numba.core.event as event

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            names.append(event.data["dispatcher"].py_func.__name__.strip("_"))

        def on_end(self, event: Any) -> None:
            names.pop()
            if not names:
                when_over()

    with event.install_listener("numba:compile", Listener()):
        yield


@contextmanager
def interrupts_kept(compiling: list[str] | None = None) -> Iterator[Callable[[], None]]:
    """Ctrl-C ends the block as KeyboardInterrupt, wherever it comes. What is yielded raises it, if it has come.

    It may come while LLVM calls back into numba, where it would be printed and dropped, and another error might follow,
    or none. So while something is `compiling` it is only noted.
    """
    if current_thread() is not main_thread():
        yield lambda: None
        return
    pressed: list[int] = []

    def on_interrupt(number: int, _: object) -> None:
        pressed.append(number)
        if not compiling:
            raise KeyboardInterrupt

    def raise_if_pressed() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield raise_if_pressed
    except Exception as error:
        if pressed:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    raise_if_pressed()


@contextmanager
def spinner(message: str, keys: Keys | None = None, long: float = math.inf) -> Iterator[Callable[[str], object]]:
    """Show `message` on the error stream's terminal, and something that turns, if the block runs for long.

    What the block says (see signs_of_life) takes its place.

    If `keys` are given, `q` ends it. Where the error stream is no terminal it is said once, after `long` seconds.
    """
    console = Console(stderr=True)
    if not (console.is_terminal or keys or long < math.inf):
        with interrupts_kept():
            yield lambda text: None
        return
    status = console.status(Text(message))  # as text, for a file may be called `[/x]`
    told = list[str]()
    start = time.monotonic()

    def show(text: str) -> None:
        if keys:
            leave_if_asked(keys)
        if not console.is_terminal:
            if not told and time.monotonic() - start > long:
                told.append(text)
                print(f"minipage: still {text} ...", file=sys.stderr, flush=True)
        elif not console.is_dumb_terminal:
            status.update(Text(text))
            status.start()
        elif text not in told:  # nothing can turn here
            told.append(text)
            console.print(f"{text} ...", markup=False)

    with signs_of_life(message, show, status.stop) as say:
        yield say


def loading(say: Callable[[str], object]) -> Callable[[int, int], object]:
    """LLM's `progress`, as a bar."""
    return lambda done, total: say(f"loading the model {'━' * (20 * done // total):╌<20} {done} of {total} weights")


def patiently(items: Iterator[T], message: str, long: float = math.inf) -> Iterator[T]:
    """The same items, with a spinner whenever one is long in coming."""
    while True:
        with spinner(message, long=long):
            try:
                item = next(items)
            except StopIteration:
                return
        yield item
