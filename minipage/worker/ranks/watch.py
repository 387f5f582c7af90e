"""Who is dead, or hangs: rank 0 looks after the others, so that nobody waits for ever.

    a rank ends       its connections close, so rank 0 notices at its next word with it
    a rank hangs      rank 0 waits, and for PATIENCE seconds none of the others has got further or computed

The second needs signs of life: every rank says each second how many all-reduces it has done, and how much processor
time it has used. One that compiles, or computes a long prompt, uses some, and others may wait for it; one that is
stopped, or waits for a lock, does not. Of those that do nothing, one that is stopped gives no more signs at all.
Whichever it is, all other ranks are ended, and the engine is told, by RankError.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minipage.errors import RankError
from minipage.worker.ranks.meeting import BEAT, Disconnected, Meeting
from minipage.worker.ranks.process_group import ProcessGroup

PATIENCE = 5.0  # seconds without a sign of life
LAST_PATIENCE = 600.0  # in one wait, whatever the signs
LAST_WORDS = 2.0  # until a rank that is gone has said why


class Watch:
    """Looks after the other ranks, as rank 0."""

    def __init__(self, meeting: Meeting, group: ProcessGroup) -> None:
        self.meeting = meeting
        self.group = group
        self.lost: str | None = None  # why there is no going on
        weakref.finalize(self, group.close)  # when Python ends, NCCL would wait for the others otherwise
        self._end = weakref.finalize(self, meeting.end_all)  # this comes before that, then
        # No daemon: Python must not end while it talks to the store, or to NCCL, which are not Python.
        threading.Thread(target=look_for_hanging, args=(weakref.ref(self),), name="minipage watch").start()

    def check_alive(self) -> None:
        """Raise RankError if a rank is lost."""
        if self.lost is None:
            for rank, process in self.meeting.processes.items():
                if process.poll() is not None:
                    self.end(self.meeting.end_of(rank) or f"rank {rank} is lost")
        if self.lost is not None:
            self.meeting.wait_for_ends()  # the other thread may have found it out, and be about to end them
            raise RankError(
                f"{self.lost}. Each of the {self.meeting.size} ranks has a part of the model, so this engine serves "
                "nobody more: make a new one."
            )

    @contextmanager
    def no_rank_lost(self) -> Iterator[None]:
        """When a connection closes in this block, RankError says why."""
        try:
            yield
        except Disconnected as error:
            if self.lost is None:
                self.end(self._reason(error))
            self.check_alive()
        except RuntimeError:  # of a GPU that was stopped in the middle
            if self.lost is None:
                raise
            self.check_alive()
        finally:
            self.group.waiting_since = None
        if self.lost is not None:  # on a GPU nothing raises: what was waited for came to an end, with anything in it
            self.check_alive()

    def wait_for(self, key: str, rank: int) -> Any:
        """What a rank answers. Raises Disconnected if it ends instead."""
        self.group.waiting_since = time.monotonic()
        return self.meeting.wait_for(key, rank, lambda: self.lost)

    def end(self, why: str) -> None:
        """End all other ranks."""
        self.lost = self.lost or why
        self._end()
        self.meeting.kill_all()
        self.group.abandon()

    def _reason(self, error: Disconnected) -> str:
        """Which rank is lost, and how, as far as can be found out soon."""
        deadline = time.monotonic() + LAST_WORDS
        while time.monotonic() < deadline:
            for rank in self.group.others:
                if how := self.meeting.end_of(rank):
                    return how
            time.sleep(0.05)
        return f"a rank is lost: {error}"


def look_for_hanging(reference: weakref.ref[Watch]) -> None:
    """A thread of rank 0, as long as there is somebody to look after."""
    store: Any = None
    # Of each rank: how far it is, since when, and the number of its sign then.
    beats: dict[int, tuple[bytes, float, int]] = {}
    while threading.main_thread().is_alive() and (watch := reference()) and watch.lost is None:
        since, now = watch.group.waiting_since, time.monotonic()
        if since is None or now - since < 1:
            beats = {}
        else:
            store = store or watch.meeting.connect()
            num_signs = {}  # of each rank, since it has got no further
            for rank in watch.group.others:
                if why := watch.meeting.end_of(rank):  # on a GPU its connections close without a word
                    watch.end(why)
                    break
                key = BEAT.format(rank)
                done, _, number = (store.get(key) if store.check([key]) else b" 0").rpartition(b" ")
                if rank not in beats or beats[rank][0] != done:
                    beats[rank] = done, now, int(number)
                num_signs[rank] = int(number) - beats[rank][2]
            else:
                still = now - max(last for _, last, _ in beats.values())  # seconds
                if still > PATIENCE or now - since > LAST_PATIENCE:
                    rank = min(num_signs, key=num_signs.__getitem__)  # those that wait for it show that they are there
                    watch.end(f"rank {rank} hangs: for {still:.0f} s it has done nothing")
        del watch
        time.sleep(0.5)
