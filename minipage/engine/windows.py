"""Which parts an engine has if its model has windows, or several KV cache groups (memory/kv_groups.py)."""

from __future__ import annotations

from minipage.memory import BlockPool, BlockTable, PrefixCache
from minipage.memory.kv_group_cache import GroupPrefixCache
from minipage.memory.kv_groups import GroupTables, KVGroups
from minipage.model.architecture import KVSpec
from minipage.scheduling import Scheduler, SequenceGroup
from minipage.scheduling.windowed import WindowedGroup

Kinds = tuple[type[BlockTable], type[SequenceGroup]]


def groups_for(kv: KVSpec, block_table: type[BlockTable], scheduler: Scheduler | None) -> KVGroups:
    """Which layers share block tables. Tables and prefix caches of somebody's own know no groups."""
    is_own = block_table is not BlockTable or type(scheduler and scheduler.prefix_cache) is PrefixCache
    return KVGroups.of(kv.num_layers, kv.windows, in_groups=not is_own)


def make_prefix_cache(block_pool: BlockPool, groups: KVGroups) -> PrefixCache:
    return PrefixCache(block_pool) if groups.parts == (None,) else GroupPrefixCache(block_pool, groups.windows)


def kinds_of_sequences(groups: KVGroups, block_table: type[BlockTable], most_at_once: int) -> Kinds:
    """What the sequences of a model keep their blocks in, and are scheduled as."""
    if groups.parts == (None,):
        return block_table, SequenceGroup
    tables = type("GroupTables", (GroupTables,), {"windows": groups.windows})
    return tables, WindowedGroup.of(groups.windows, most_at_once)
