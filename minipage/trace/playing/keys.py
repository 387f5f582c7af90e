"""Single keys from the terminal, with a time limit: a program that plays by itself must not block on the keyboard.

    with Keys() as keys:
        key = keys.poll(0.1)      # "n", " ", "right", … or None if nothing was pressed in a tenth of a second

While it is open the terminal hands over every key at once and shows none of them; afterwards it is as it was before.
What each key sends is looked up in `readchar`, whose own reading functions wait for ever.
"""

from __future__ import annotations

import _thread
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from readchar import key as codes

LEAVE = "q"  # also what a closed keyboard counts as
ARROWS = {codes.RIGHT: "right", codes.LEFT: "left", "\x1bOC": "right", "\x1bOD": "left"} | {
    code: name
    for name, sent in {"home": (codes.HOME, "\x1bOH", "\x1b[1~"), "end": (codes.END, "\x1bOF", "\x1b[4~")}.items()
    for code in sent
}
ONE_KEY = re.compile(r"\x1b[\[O][0-9;]*[^0-9;]|.", re.DOTALL)  # an arrow sends several characters at once

if sys.platform == "win32":
    import msvcrt

    import readchar

    class Keys:
        """The keyboard, for as long as the `with` block lasts."""

        def __enter__(self) -> Keys:
            self.left = False
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def poll(self, timeout: float) -> str | None:
            """The next key, or None if there is none within `timeout` seconds."""
            deadline = time.monotonic() + timeout
            while not msvcrt.kbhit():
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.01)
            pressed = readchar.readkey()
            return ARROWS.get(pressed, pressed)

        def wants_to_leave(self) -> bool:
            """It cannot be known here without taking the key; Ctrl-C leaves at any time."""
            return False

else:
    import os
    import select
    import signal
    import termios
    import tty

    class Keys:
        """The keyboard, for as long as the `with` block lasts."""

        def __enter__(self) -> Keys:
            self.left = False
            self._fd = sys.stdin.fileno()
            self._pressed: deque[str] = deque()
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
            mode = termios.tcgetattr(self._fd)
            # No Ctrl-Z: the shell would get a terminal that shows no keys. And a polite kill runs `__exit__`.
            mode[6][termios.VSUSP] = os.fpathconf(self._fd, "PC_VDISABLE").to_bytes(1, "little")
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
            self._on_kill = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
            return self

        def __exit__(self, *error: object) -> None:
            signal.signal(signal.SIGTERM, self._on_kill)
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, self._before)  # keys not read yet are dropped

        def poll(self, timeout: float) -> str | None:
            """The next key, or None if there is none within `timeout` seconds."""
            if not self._pressed:
                self._read(timeout)
            return self._pressed.popleft() if self._pressed else None

        def wants_to_leave(self) -> bool:
            """Whether the key for leaving has been pressed; all that was pressed is still there for `poll`."""
            self._read(0)
            return LEAVE in self._pressed

        def _read(self, timeout: float) -> None:
            if not select.select([self._fd], [], [], timeout)[0]:
                return
            sent = os.read(self._fd, 64)
            if not sent:  # the terminal has gone away
                self._pressed.append(LEAVE)
            if sent == b"\x1b" and select.select([self._fd], [], [], 0.02)[0]:
                sent += os.read(self._fd, 64)  # the rest of an arrow that came in two pieces
            for pressed in ONE_KEY.findall(sent.decode(errors="ignore")):
                self._pressed.append(ARROWS.get(pressed, pressed))


@contextmanager
def keyboard(wanted: bool) -> Iterator[Keys | None]:
    """Its keys, if they are `wanted`. Leaving while something is computed (`leave_if_asked`) ends the block."""
    if not wanted:
        yield None
        return
    with Keys() as keys:
        try:
            yield keys
        except KeyboardInterrupt:
            if not keys.left:
                raise


def leave_if_asked(keys: Keys) -> None:
    """Called from another thread, again and again, while the main one computes: interrupt it if `q` was pressed."""
    if not keys.left and keys.wants_to_leave():
        keys.left = True
        _thread.interrupt_main()
