"""Prefixes that end inside a block: the engine's side of memory/partial_cache.py.

Schedulers know nothing of it. The cache orders a copy when a sequence begins inside a block; here, between the phases
of the engine, the order joins those of copy-on-write in the plan of the step.
"""

from __future__ import annotations

from minipage.engine.engine import Engine
from minipage.engine.windows import make_prefix_cache
from minipage.errors import ConfigurationError
from minipage.memory import BlockCopy, BlockPool, PrefixCache
from minipage.memory.kv_groups import KVGroups
from minipage.memory.partial_cache import PartialPrefixCache
from minipage.scheduling import StepPlan


def prefix_cache_for(pool: BlockPool, groups: KVGroups, caching: bool, unit: int | None) -> PrefixCache | None:
    """The prefix cache that an engine's `enable_prefix_caching` and `prefix_match_unit` ask for, if they do.

    Raises ConfigurationError if there is none.
    """
    if unit is None:
        return make_prefix_cache(pool, groups) if caching else None
    if not caching:
        raise ConfigurationError("prefix_match_unit has no effect without enable_prefix_caching; give both, or none.")
    if groups.parts != (None,):
        what = "this model has sliding windows, whose prefixes are found in whole blocks only"
        raise ConfigurationError(f"prefix_match_unit is {unit}, but {what}; leave it out.")
    return PartialPrefixCache(pool, unit)


def copy_what_is_found(engine: Engine) -> None:
    """Let each step of an engine with such a cache make the copies that were ordered while it was planned."""
    cache, schedule = engine.scheduler.prefix_cache, engine.schedule
    if not isinstance(cache, PartialPrefixCache):
        return

    def schedule_and_copy() -> StepPlan:
        cache.copies.clear()  # there are some if a step has failed
        plan = schedule()
        plan.copies = at_once([*cache.copies, *plan.copies])
        return plan

    engine.schedule = schedule_and_copy  # type: ignore[method-assign]


def at_once(copies: list[BlockCopy]) -> list[BlockCopy]:
    """The same copies for one go, in which all blocks are read before any is written.

    Samples that find all they have in common fork a table whose last block is itself still to be copied: a copy of a
    copy is one of the original.
    """
    origin: dict[int, int] = {}
    for source, destination in copies:
        origin[destination] = origin.get(source, source)
    return [BlockCopy(source, destination) for destination, source in origin.items()]
