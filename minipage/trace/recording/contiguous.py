"""Memories that give each request one piece, drawn beside the pool of blocks where a scenario compares them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from minipage.simulate.baselines import SlotUsage

Use = Literal["stored", "reserved", "internal"]  # a slot holds a token; will hold one; never will


class Segment(NamedTuple):
    """Slots in a row that one request has for one use. What is in no segment is free."""

    start: int
    num_slots: int
    label: str
    use: Use


class Piece(NamedTuple):
    """What one request has of a contiguous memory: slots in a row, from `start` on."""

    label: str
    start: int
    num_reserved: int  # slots that nobody else can have
    num_stored: int  # this many, from the first on, hold a token
    num_stored_at_last: int  # this many will hold one when it is done


@dataclass(frozen=True, slots=True)
class ContiguousFrame:
    """A memory as large as the pool that serves the same requests, each in one piece (scenario `fragmentation`)."""

    name: str  # how it chooses what to reserve
    num_slots: int
    pieces: tuple[Piece, ...] = ()  # of the running requests, oldest first
    waiting: tuple[str, ...] = ()  # labels, next one first
    finished: tuple[str, ...] = ()

    @property
    def usage(self) -> SlotUsage:
        """What its slots are used for."""
        stored = sum(piece.num_stored for piece in self.pieces)
        reserved = sum(min(piece.num_stored_at_last, piece.num_reserved) for piece in self.pieces) - stored
        held = sum(piece.num_reserved for piece in self.pieces)
        return SlotUsage(stored, reserved, held - stored - reserved, self.num_slots - held)

    @property
    def segments(self) -> list[Segment]:
        """What lies where, from the first slot to the last."""
        told = []
        for piece in sorted(self.pieces, key=lambda piece: piece.start):
            wanted = min(piece.num_stored_at_last, piece.num_reserved)
            ends: dict[Use, int] = {"stored": piece.num_stored, "reserved": wanted, "internal": piece.num_reserved}
            told += segments_between(piece.start, piece.label, ends)
        return told

    def after(self, operations: Iterable[Iterable[Any]]) -> ContiguousFrame:
        """The same memory a little later; operations: ["come", label], ["start", *Piece], ["grow"], ["end", label]."""
        pieces = {piece.label: piece for piece in self.pieces}
        waiting, finished = list(self.waiting), list(self.finished)
        for operation, *facts in operations:
            if operation == "come":
                waiting += facts
            elif operation == "start":
                piece = Piece(*facts)
                waiting.remove(piece.label)
                pieces[piece.label] = piece
            elif operation == "grow":  # everybody who runs has one more token
                pieces = {label: piece._replace(num_stored=piece.num_stored + 1) for label, piece in pieces.items()}
            elif operation == "end":
                del pieces[facts[0]]
                finished += facts
            else:
                raise ValueError(f"unknown operation {operation!r}")
        return replace(self, pieces=tuple(pieces.values()), waiting=tuple(waiting), finished=tuple(finished))


def segments_between(start: int, label: str, ends: dict[Use, int]) -> list[Segment]:
    """Cut what begins at slot `start` at each end, counted from there; empty segments are left out."""
    told = []
    before = 0
    for use, end in ends.items():
        if end > before:
            told.append(Segment(start + before, end - before, label, use))
        before = max(before, end)
    return told
