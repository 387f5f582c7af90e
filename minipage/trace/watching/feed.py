"""What viewers are told: frames in their order, and facts; each viewer at its own pace.

    push(tree), tell(facts) ─▶ Feed ─▶ Viewer.take() ─▶ {"frames": [difference, ...], "facts": {...}}

Whoever tells never waits. A viewer that reads slowly finds the frames that are kept, or only the newest, as the
difference from the last one that it has; so nothing piles up for it.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from operator import index
from typing import Any

from minipage.trace.drawing.html import Tree, difference


class Viewer:
    """One that looks. `wake` is called, from any thread, when there may be something to take."""

    def __init__(self, feed: Feed, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.number = 0  # of the last frame that it has
        self.tree: Tree = {}  # that frame
        self.act = -1  # which run it has seen
        self.facts = 0  # the version of the facts that it has
        self._feed = feed

    def take(self) -> str | None:
        """All that is new, in JSON; None if nothing is."""
        return self._feed.take(self)


class Feed:
    """Frames and facts for viewers.

    Args:
        num_kept: frames that a viewer may be behind before it is told of the newest alone; and those who come later are
            told of this many.
    """

    def __init__(self, num_kept: int = 1) -> None:
        self._lock = threading.Lock()
        self._viewers: set[Viewer] = set()
        self._kept: deque[tuple[int, Tree]] = deque(maxlen=num_kept)
        self._number = 0
        self._act = 0
        self._facts: dict[str, tuple[int, Any]] = {}  # name -> (version in which it was told, value)
        self._version = 0
        self._texts: dict[tuple[int, int], str] = {}  # (from frame, to frame): the difference in JSON

    # ---- telling

    def push(self, tree: Tree) -> None:
        """One more frame."""
        with self._lock:
            before = self._kept[-1] if self._kept else (0, {})
            self._number += 1
            self._kept.append((self._number, tree))
            oldest = min(self._kept[0][0], before[0])
            self._texts = {(a, b): text for (a, b), text in self._texts.items() if a >= oldest}
            if any(viewer.number == before[0] for viewer in self._viewers):
                self._difference(*before, *self._kept[-1])
        self.wake()

    def tell(self, **facts: Any) -> None:
        """New values of some facts; they have to be what JSON knows, and are not changed later."""
        with self._lock:
            self._version += 1
            self._facts |= {name: (self._version, value) for name, value in facts.items()}
        self.wake()

    def restart(self) -> None:
        """Another run begins: its frames have nothing to do with those before."""
        with self._lock:
            self._kept.clear()
            self._texts.clear()
            self._act += 1
        self.wake()

    def wake(self) -> None:
        with self._lock:
            viewers = list(self._viewers)
        for viewer in viewers:
            viewer.wake()

    # ---- looking

    @property
    def num_viewers(self) -> int:
        return len(self._viewers)

    @property
    def is_awaited(self) -> bool:
        """Whether some viewer has everything, and waits for more."""
        with self._lock:
            return any(viewer.number == self._number and viewer.act == self._act for viewer in self._viewers)

    def join(self, wake: Callable[[], None]) -> Viewer:
        viewer = Viewer(self, wake)
        with self._lock:
            self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        with self._lock:
            self._viewers.discard(viewer)

    def take(self, viewer: Viewer) -> str | None:
        with self._lock:
            parts = []
            if viewer.act != self._act:
                viewer.act, viewer.number, viewer.tree = self._act, 0, {}
                parts.append('"anew":true')
            if coming := self._coming(viewer):
                deltas = []
                for number, tree in coming:
                    deltas.append(self._difference(viewer.number, viewer.tree, number, tree))
                    viewer.number, viewer.tree = number, tree
                parts.append(f'"frames":[{",".join(deltas)}]')
            if viewer.facts != self._version:
                news = {name: value for name, (version, value) in self._facts.items() if version > viewer.facts}
                viewer.facts = self._version
                parts.append(f'"facts":{as_json(news)}')
            return f"{{{','.join(parts)}}}" if parts else None

    def _coming(self, viewer: Viewer) -> list[tuple[int, Tree]]:
        """The frames that it has not seen: all, if it is not far behind, or else the newest."""
        coming = [(number, tree) for number, tree in self._kept if number > viewer.number]
        is_far_behind = viewer.number and coming and coming[0][0] > viewer.number + 1
        return coming[-1:] if is_far_behind else coming

    def _difference(self, number: int, tree: Tree, newer: int, newer_tree: Tree) -> str:
        """Computed once for all viewers that have come equally far."""
        if (number, newer) not in self._texts:
            self._texts[number, newer] = as_json(difference(tree, newer_tree))
        return self._texts[number, newer]


def as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=index)


def waking(loop: Any, event: Any) -> Callable[[], None]:
    """Sets an asyncio.Event from any thread; one whose loop is closed needs it no more."""

    def wake() -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(event.set)

    return wake
