"""Why something happens in a step: what is about to be done, and the lines of source that do it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Want(NamedTuple):
    """A text whose next token is to be written into a block that it has already."""

    label: str
    position: int  # of the token
    slot: int  # block * block_size + offset


class Ahead(NamedTuple):
    """What a step is about to do, in a "before" frame."""

    wants: tuple[Want, ...] = ()  # who is going to write into a shared block
    needy: tuple[str, ...] = ()  # labels: whose last block is full
    gives_way: tuple[str, ...] = ()  # labels: who will lose its blocks to them
    finds: tuple[tuple[str, tuple[int, ...]], ...] = ()  # (label, blocks in the prefix cache that hold its beginning)
    returns: tuple[str, ...] = ()  # labels: who will come back from swap space


NOTHING_AHEAD = Ahead()


class CodeFrame(NamedTuple):
    """A function that was at work in this phase."""

    file: str  # from the package's folder on
    function: str
    first: int  # the number of its first line
    lines: tuple[str, ...]  # its source
    lit: tuple[tuple[int, tuple[int, ...]], ...]  # (number of a line that did something, the blocks that it did it to)


def code_frames(lines: Iterable[Sequence[int]], functions: Sequence[Any]) -> tuple[CodeFrame, ...]:
    """The lines that were at work, (number of a function, line, blocks ...), function by function."""
    lit: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for function, line, *blocks in lines:
        lit.setdefault(function, []).append((line, tuple(blocks)))
    sources = {number: functions[number] for number in lit}  # the outermost caller first
    return tuple(
        CodeFrame(source["file"], source["name"], source["first"], tuple(source["lines"]), tuple(sorted(lit[number])))
        for number, source in sources.items()
    )
