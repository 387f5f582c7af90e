"""A recorded run: what changed in each phase, and from that the engine as it was at any moment.

    trace = Trace.load("run.jsonl")
    trace[0], trace[-1], trace.steps[3]          # frames, made when they are asked for

Only differences are kept, so that ten thousand steps stay small. A frame is made by replaying them; every now and then
the state is kept whole, so that going back need not begin at the beginning.

The file has JSON lines: a header (version, sizes, what was there when recording began, and the words of the tokens that
occur), then one line a phase, a change as replay.py describes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import overload

from minipage.errors import MinipageError, TraceError, count
from minipage.trace.recording.frames import STOPS, Frame, fullest
from minipage.trace.recording.replay import Change, State, Vocabulary, replay
from minipage.worker.gc_off import gc_off

# 2: what the scenarios `fragmentation` and `kernel` show; 3: "before" frames, and lines of source; 4: the free queue's
# order, if another than lru's
VERSION = 4
CHECKPOINT = 256  # phases between two states that are kept whole; with a large pool, more
DAMAGE = (  # what odd values in a file raise
    ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError,
)  # fmt: skip
ROUTINE = ("attend", "forward", "sample")  # they do the same each time: their sentences are gone with the phase


class Trace(Sequence[Frame]):
    """Frames of a run, one for each phase of each step. It grows while it is recorded."""

    def __init__(self, header: Change, vocabulary: Vocabulary) -> None:
        self.header = header
        self.title = str(header.get("title", ""))
        self.path: str | Path | None = None  # of the file that it was read from
        self.changes: list[Change] = []
        self.stories: dict[int, str] = {}  # what a scenario says to a step
        self.vocabulary = vocabulary
        self._checkpoints = [State(header, vocabulary)]  # before changes 0, distance, 2 * distance, ...
        self._distance = max(CHECKPOINT, len(header["ref_counts"]) // 16)
        self._ahead = self._checkpoints[0].copy()  # before the change `_next`
        self._next = 0

    def __len__(self) -> int:
        return len(self.changes)

    def __repr__(self) -> str:
        title = f" {self.title!r}" if self.title else ""
        num_steps = len({change["step"] for change in self.changes})
        pool = f"{count(len(self.header['ref_counts']), 'block')} of {count(self.header['block_size'], 'token')}"
        return f"<Trace{title}: {count(num_steps, 'step')}, {count(len(self), 'frame')}, {pool}>"

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        if isinstance(index, slice):
            return [self._readable_frame(i) for i in range(len(self))[index]]
        return self._readable_frame(range(len(self))[index])  # a range knows negative numbers, and its end

    @property
    def step_ends(self) -> list[int]:
        """The frames with which the steps ended; a step that failed has no end."""
        return [i for i, change in enumerate(self.changes) if change["phase"] == "update"]

    @property
    def stops(self) -> list[int]:
        """The frames at which to stop when going step by step."""
        return [i for i, change in enumerate(self.changes) if change["phase"] in STOPS]

    @property
    def steps(self) -> list[Frame]:
        """One frame per step: how it ended."""
        return [self[i] for i in self.step_ends]

    def _readable_frame(self, index: int) -> Frame:
        """Raises TraceError if it was read from a file that can be replayed, but does not make sense."""
        try:
            return self._frame(index)
        except DAMAGE as error:
            if self.path is None:
                raise
            raise TraceError(f"{self.path} is damaged: line {index + 2} {what_is_wrong(error)}.") from error

    def _frame(self, index: int) -> Frame:
        """Replay up to the step of this frame, and from there with the sentences."""
        step = self.changes[index]["step"]
        first = index
        while first and self.changes[first - 1]["step"] == step:
            first -= 1
        self._go_to(first)
        state = self._ahead.copy()
        told: list[str] = []
        num_earlier = num_stopped = 0
        for change in self.changes[first : index + 1]:
            is_the_write = state.phase == "forward" and state.moves.get("copies")  # that the copy was made for
            if state.phase in ROUTINE and not is_the_write:
                del told[num_earlier:]
            num_earlier = len(told)
            if state.phase in STOPS and state.step == step:
                num_stopped = num_earlier
            told += replay(change, state, tell=True)
        return state.frame(told, num_earlier, self.stories.get(step, ""), num_stopped)

    def _go_to(self, index: int) -> None:
        """Bring `_ahead` to the moment before a change: from where it is, or from the last whole state before it."""
        nearest = min(index // self._distance, len(self._checkpoints) - 1)
        if index < self._next or self._next < nearest * self._distance:
            self._ahead = self._checkpoints[nearest].copy()
            self._next = nearest * self._distance
        while self._next < index:
            here, self._next = self._next, len(self.changes) + 1  # if Ctrl-C comes now, this state is of no more use
            replay(self.changes[here], self._ahead)
            self._next = here + 1
            if self._next == len(self._checkpoints) * self._distance:
                self._checkpoints.append(self._ahead.copy())

    def _repr_html_(self) -> str:
        """In a notebook a trace shows itself, with no kernel behind it."""
        from minipage.trace.drawing import exports, html

        if not len(self):
            return "<p>The trace has no frames yet.</p>"
        frames = self[:]
        return html.notebook(frames, self.title or html.TITLE, still=exports.picture(fullest(frames)))

    # ---- files

    def save(self, path: str | Path) -> None:
        """Write it as JSON lines. Raises OSError."""
        words = {str(token): word_to_json(word) for token, word in sorted(self.vocabulary.items())}
        stories = {str(step): story for step, story in self.stories.items()}
        facts = {"num_frames": len(self), "title": self.title, "stories": stories}
        own = {name: value for name, value in self.header.items() if name != "in_folder"}
        header = {"minipage_trace": VERSION} | own | facts | {"words": words}
        with open(path, "w", encoding="utf-8") as file:
            for line in (header, *self.changes):
                file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":"), default=index) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` has written. Raises TraceError if it is not a trace, or a damaged or newer one; OSError."""
        number = 1
        try:
            with open(path, encoding="utf-8") as file, gc_off():  # many objects are made, and none is garbage
                header = json.loads(file.readline())
                if not isinstance(header, dict) or not isinstance(header.get("minipage_trace"), int):
                    raise TraceError(f"{path} is not a trace: its first line has no minipage_trace version.")
                if header["minipage_trace"] > VERSION:
                    raise TraceError(
                        f"{path} is a trace of version {header['minipage_trace']}, and this minipage reads up to "
                        f"{VERSION}. Install a newer minipage."
                    )
                trace = cls(header, {int(token): word_from_json(word) for token, word in header["words"].items()})
                trace.stories = {int(step): str(story) for step, story in header["stories"].items()}
                for number, line in enumerate(file, 2):  # noqa: B007 (the error below names the line)
                    trace.changes.append(json.loads(line))
                    trace._go_to(len(trace))
                if len(trace) != header["num_frames"]:
                    raise TraceError(
                        f"{path} is damaged: it has {len(trace)} of its {count(header['num_frames'], 'frame')}."
                    )
        except MinipageError:
            raise
        except DAMAGE as error:
            raise TraceError(f"{path} is damaged: line {number} {what_is_wrong(error)}.") from error
        trace.path = path
        return trace


@contextmanager
def shown_from(path: str | None) -> Iterator[None]:
    """Raises TraceError if what was read from this file, if from any, turns out to make no sense while it is drawn."""
    try:
        yield
    except DAMAGE as error:
        if path is None or isinstance(error, MinipageError):
            raise
        raise TraceError(f"{path} is damaged: what it tells cannot be drawn.") from error


def what_is_wrong(error: Exception) -> str:
    """What is wrong with a line of a file that could not be replayed."""
    if isinstance(error, UnicodeDecodeError):
        return "and what follows is not text in UTF-8"
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "is not JSON, or only a part of it"
    if isinstance(error, KeyError):
        return f"names something that it or the lines before it should have told, and have not: {error}"
    return "does not follow from the lines before it"


def word_to_json(word: bytes) -> str | list[int]:
    """Text where it is text: a token may end in the middle of a character, and then it is a list of bytes."""
    try:
        return word.decode()
    except UnicodeDecodeError:
        return list(word)


def word_from_json(word: str | list[int]) -> bytes:
    return word.encode() if isinstance(word, str) else bytes(word)
