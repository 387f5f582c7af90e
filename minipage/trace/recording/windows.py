"""KV cache groups in a trace (memory/kv_groups.py): their tables, and which blocks came home from behind a window."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from minipage.memory import BlockTable
from minipage.memory.kv_groups import EVERYTHING, NULL_BLOCK, GroupTables, KVGroups

Tables: TypeAlias = Mapping[str, Sequence[Sequence[int]]]  # label -> block tables, one for each group


def tables_of(table: BlockTable) -> list[list[int]]:
    """The block tables of a sequence, one for each group, with null blocks behind a window."""
    return [list(part) for part in table.parts] if isinstance(table, GroupTables) else [table.blocks]


def windows_of(groups: KVGroups | None) -> list[int]:
    """How far the layers of each group look back, in tokens; 0: to the beginning. Empty if all share a plain table."""
    if groups is None or groups.parts == (None,):
        return []
    return [0 if window == EVERYTHING else window for window in groups.windows]


def first_blocks(table: BlockTable, num_blocks: int) -> list[int]:
    """The first blocks of each table, as far as they are still held."""
    return [block for part in tables_of(table) for block in held(part[:num_blocks])]


def group_name(window: int) -> str:
    """What a group of layers sees."""
    return f"last {window} tokens" if window else "all tokens"


def held(blocks: Iterable[int]) -> list[int]:
    """Without null blocks."""
    return [block for block in blocks if block != NULL_BLOCK]


def moved_on(before: Tables, after: Tables) -> dict[str, list[int]]:
    """{label: the blocks that its window has left behind}, by the tables before and after."""
    left = {
        label: [
            old
            for table_before, table in zip(before.get(label, ()), tables)
            for old, new in zip(table_before, table)
            if new == NULL_BLOCK != old
        ]
        for label, tables in after.items()
    }
    return {label: blocks for label, blocks in left.items() if blocks}


def slides(before: Tables, texts: Mapping[str, Any], block_names: Callable[[Sequence[int]], str]) -> list[str]:
    """Whose window has moved on, and what lies behind it now: sentences."""
    left = moved_on(before, {label: texts[label].tables for label in before})
    return [
        f"The window of {label} has moved on: {block_names(blocks)} {'lies' if len(blocks) == 1 else 'lie'} behind it, "
        f"and {'goes' if len(blocks) == 1 else 'go'} back to the free queue."
        for label, blocks in left.items()
    ]
