"""Sliding windows in a trace (memory/kv_groups.py): which blocks came home, and what stands in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from minipage.memory import BlockTable
from minipage.memory.kv_groups import NULL_BLOCK, GroupTables

Tables: TypeAlias = Mapping[str, Sequence[int]]  # label -> block table


def recorded(table: BlockTable) -> list[int]:
    """The blocks of a table, with null blocks behind its window. Of several tables, those of the first are shown."""
    return list(table.parts[0]) if isinstance(table, GroupTables) else table.blocks


def held(blocks: Iterable[int]) -> list[int]:
    """Without null blocks."""
    return [block for block in blocks if block != NULL_BLOCK]


def moved_on(before: Tables, after: Tables) -> dict[str, list[int]]:
    """{label: the blocks that its window has left behind}, by the tables before and after."""
    left = {
        label: [old for old, new in zip(before.get(label, ()), blocks) if new == NULL_BLOCK != old]
        for label, blocks in after.items()
    }
    return {label: blocks for label, blocks in left.items() if blocks}


def slides(before: Tables, texts: Mapping[str, Any], block_names: Callable[[Sequence[int]], str]) -> list[str]:
    """Whose window has moved on, and what lies behind it now: sentences."""
    left = moved_on(before, {label: texts[label].blocks for label in before})
    return [
        f"The window of {label} has moved on: {block_names(blocks)} {'lies' if len(blocks) == 1 else 'lie'} behind it, "
        f"and {'goes' if len(blocks) == 1 else 'go'} back to the free queue."
        for label, blocks in left.items()
    ]
