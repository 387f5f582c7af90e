"""Plays frames on a full screen: by itself until a key is pressed, then as the viewer likes.

Frames come from an iterator and are made as they are needed; going back shows frames that were kept. While one takes
long, the last line says why, and something turns. It leaves the terminal as it found it, whatever happens.
"""

from __future__ import annotations

import _thread
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from minipage.trace.drawing.glyphs import BOLD, DIM, Glyphs, spread
from minipage.trace.drawing.terminal import draw
from minipage.trace.playing.help import help_for
from minipage.trace.playing.keys import LEAVE, Keys
from minipage.trace.playing.spinner import signs_of_life
from minipage.trace.recording.frames import Frame, is_stop

SECONDS_PER_STEP = 0.7
LINGER = 2.5  # seconds that the last frame stays when nobody touches a key
LOOK_AROUND = 0.1  # seconds between two looks at the size of the terminal

FOOTER = {"space": "pause", "n": "next", "b": "back", "p": "phases", "+-": "speed", "?": "help", "q": "quit"}


class Player:
    """A position among frames that grow on demand, and what the keys do to it.

    `first` is the first frame, or all frames there are so far; `source` makes more.
    """

    def __init__(self, first: Frame | Sequence[Frame], source: Iterator[Frame], glyphs: Glyphs) -> None:
        self.frames: Sequence[Frame] = [first] if isinstance(first, Frame) else first
        self.position = 0
        self.playing = True
        self.at_end = False  # the source has no more frames
        self.touched = False  # a key was pressed
        self.helping = False
        self.typed = ""  # digits of a step to jump to
        self.by_phase = False  # stop at each phase of a step, not only at its end
        self.left = False
        self.seconds = SECONDS_PER_STEP
        self.waits_for = ""  # what takes long at the moment
        self.watch: Callable[[str], AbstractContextManager[object]] = nullcontext  # around the making of a frame
        self._source = source  # adds to `frames`, if that is a list
        self._glyphs = glyphs
        self._finish_step()

    @property
    def frame(self) -> Frame:
        return self.frames[self.position]

    @property
    def finished(self) -> bool:
        """Whether this is the last frame that there will ever be."""
        return self.at_end and self.position + 1 == len(self.frames)

    def forward(self) -> None:
        """To the next frame; step by step, to the next end of a step."""
        self._advance()
        self._finish_step()
        if self.finished:
            self.playing = False

    def back(self) -> None:
        self.position = max(0, self.position - 1)
        while self.position and not (self.by_phase or is_stop(self.frame)):
            self.position -= 1
        self._finish_step()

    def jump(self, step: int) -> None:
        """To a step, or to the last one if there are fewer."""
        while self.frames[-1].step < step and self._fetch():
            pass
        self.position = min(bisect_left(self.frames, step, key=lambda frame: frame.step), len(self.frames) - 1)
        self._finish_step()

    def _finish_step(self) -> None:
        while not (self.by_phase or is_stop(self.frame) or self.finished):
            self._advance()

    def _advance(self) -> None:
        if self.position + 1 == len(self.frames):
            self._fetch()
        self.position = min(self.position + 1, len(self.frames) - 1)

    def _fetch(self) -> bool:
        """One more frame from the source, if it has one."""
        with self.watch(f"computing step {self.frames[-1].step + 1}"):
            frame = next(self._source, None)
        self.at_end = frame is None
        if frame is not None and isinstance(self.frames, list):
            self.frames.append(frame)
        return not self.at_end

    def tick(self) -> bool:
        """The time of one step has passed; returns whether there is something new to see."""
        if self.playing and not self.helping:
            self.forward()
            return True
        self.left = self.finished and not self.touched
        return False

    def press(self, key: str) -> None:
        """Do what `key` stands for."""
        self.touched = True
        typed, self.typed = self.typed, ""
        if self.helping:
            self.helping = False
        elif key.isdecimal():
            self.playing = False
            self.typed = typed + key
        elif key in ("\r", "\n"):
            if typed:
                self.jump(int(typed))
        elif key == LEAVE:
            self.left = True
        elif key == " ":
            self.playing = not self.playing
        elif key in ("right", "n"):
            self.playing = False
            self.forward()
        elif key in ("left", "b"):
            self.playing = False
            self.back()
        elif key in ("+", "="):
            self.seconds = max(0.1, self.seconds / 1.5)
        elif key in ("-", "_"):
            self.seconds = min(10.0, self.seconds * 1.5)
        elif key == "p":
            self.playing = False
            self.by_phase = not self.by_phase
            self._finish_step()
        elif key == "home":
            self.playing = False
            self.position = 0
            self._finish_step()
        elif key == "end":
            while self._fetch():
                pass
            self.playing = False
            self.position = len(self.frames) - 1
        elif key == "?":
            self.helping = True

    def picture(self, width: int, height: int) -> RenderableType:
        if self.helping:
            return Text(help_for(self.frame), no_wrap=True)
        return draw(self.frame, width, height, self._glyphs, self._footer(width))

    def _footer(self, width: int) -> Text:
        if self.waits_for:
            sign = self._glyphs.turning[int(time.monotonic() * 10) % len(self._glyphs.turning)]
            return spread(Text(f"{sign} {self.waits_for}"), Text.assemble(("q", BOLD), (" quit", DIM)), width)
        if self.typed:
            return Text.assemble("step ", (self.typed, BOLD), (": enter jumps there", DIM))
        sign, state = self._glyphs.play, f"{self.seconds:.1f} s a step"
        if not self.playing:
            sign, state = self._glyphs.pause, "paused"
        if self.finished:
            sign, state = self._glyphs.bullet, "the end" if self.touched else "any key: stay"
        end = Text(f"{sign} {state}")
        keys = [Text.assemble((key, BOLD), (f" {meaning}  ", DIM)) for key, meaning in FOOTER.items()]
        while sum(key.cell_len for key in keys) + end.cell_len >= width and len(keys) > 1:
            del keys[-3 if len(keys) > 2 else 0]  # help, and how to leave, are the last to go
        return spread(Text.assemble(*keys), end, width)


def play(player: Player, console: Console, keys: Keys) -> None:
    """Show `player` on the full screen until the viewer leaves, or the last frame was seen and no key pressed."""
    with Live(console=console, screen=True, auto_refresh=False) as live:

        def draw_again() -> None:
            live.update(player.picture(*console.size), refresh=True)

        def still_waiting(what: str) -> None:
            """Called from a thread of its own, while the main one computes."""
            player.waits_for = what
            draw_again()
            if keys.wants_to_leave() and not player.left:
                player.left = True
                _thread.interrupt_main()

        player.watch = lambda what: signs_of_life(what, still_waiting)
        try:
            _play(player, console, keys, draw_again)
        except KeyboardInterrupt:
            if not player.left:
                raise


def _play(player: Player, console: Console, keys: Keys, draw_again: Callable[[], None]) -> None:
    shown: tuple[int, int] | None = None  # the size that the picture on the screen was drawn for
    due = time.monotonic() + player.seconds
    while not player.left:
        player.waits_for = ""
        if shown != console.size:
            shown = console.size
            draw_again()
        key = keys.poll(min(LOOK_AROUND, max(0.0, due - time.monotonic())))
        if key:
            player.press(key)
            shown = None
        elif time.monotonic() < due:
            continue
        elif player.tick():
            shown = None
        due = time.monotonic() + (LINGER if player.finished else player.seconds)
