"""Sliding windows in a trace (memory/kv_groups.py): which blocks came home, and what stands in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from minipage.memory import BlockTable
from minipage.memory.kv_groups import NULL_BLOCK, GroupTables


def recorded(table: BlockTable) -> list[int]:
    """The blocks of a table, with null blocks behind its window. Of several tables, those of the first are shown."""
    return list(table.parts[0]) if isinstance(table, GroupTables) else table.blocks


def held(blocks: Iterable[int]) -> list[int]:
    """Without null blocks."""
    return [block for block in blocks if block != NULL_BLOCK]


def moved_on(before: Mapping[str, Sequence[int]], after: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """{label: the blocks that its window has left behind}, by the tables before and after."""
    left = {
        label: [old for old, new in zip(before.get(label, ()), blocks) if new == NULL_BLOCK != old]
        for label, blocks in after.items()
    }
    return {label: blocks for label, blocks in left.items() if blocks}
