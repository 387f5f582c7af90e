"""Old names, which go on working for one version, each with a DeprecationWarning. Nothing in minipage uses them.

    MOVED         modules
    RENAMED       what modules hold
    ATTRIBUTES    of classes: attributes and methods
    COMPUTED      of classes: what has no counterpart, but follows from what there is
    WERE_TUPLES   dataclasses that can still be unpacked

What is renamed mentions nothing of this, except at the end of its room's `__init__`: `keep_old_names(__name__)`.
A class that was written with the old names keeps working too, be it a subclass (`def key(...)` overrides `block_hash`)
or one of its own that takes the place of minipage's (`accept_old_names`).
"""

from __future__ import annotations

import dis
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
MOVED = {  # old module: new module; what is in an old package moves along
    "minipage.attention.compiled": "minipage.simd.options",
    "minipage.attention.cuda.arrays": "minipage.attention.cuda.device_arrays",
    "minipage.attention.cuda.numbers": "minipage.attention.cuda.kinds",
    "minipage.attention.cuda.tensor": "minipage.attention.cuda.tensor_cores",
    "minipage.attention.cuda.wide": "minipage.attention.cuda.ordinary_cores",
    "minipage.attention.halves": "minipage.simd.halves",
    "minipage.attention.vectors": "minipage.simd.vectors",
    "minipage.batch": "minipage.worker.batch",
    "minipage.beam_search": "minipage.sampling.beam_search",
    "minipage.build": "minipage.engine.build",
    "minipage.changes": "minipage.engine.recovery",
    "minipage.completion": "minipage.engine.completion",
    "minipage.engine.changes": "minipage.engine.recovery",
    "minipage.gpu": "minipage.worker.gpu",
    "minipage.gpu.arrays": "minipage.worker.gpu.views",
    "minipage.gpu.batches": "minipage.worker.gpu.next_batch",
    "minipage.gpu.sampling": "minipage.worker.gpu.draw",
    "minipage.intake": "minipage.engine.intake",
    "minipage.learn.mine": "minipage.learn.your_engine",
    "minipage.learn.show": "minipage.learn.screen",
    "minipage.memory.group_cache": "minipage.memory.kv_group_cache",
    "minipage.memory.contiguous": "minipage.simulate.baselines",
    "minipage.compiled_gpt": "minipage.model.layers.compiled",
    "minipage.model.arrays": "minipage.model.place",
    "minipage.model.torch_gpt": "minipage.model.layers.torch",
    "minipage.model.gpt": "minipage.model.before",
    "minipage.model.weights": "minipage.model.checkpoint",
    "minipage.model_runner": "minipage.worker.runner",
    "minipage.options": "minipage.cli_options",
    "minipage.prompts": "minipage.engine.prompts",
    "minipage.request": "minipage.engine.request",
    "minipage.worker.ranks.group": "minipage.worker.ranks.process_group",
    "minipage.scheduling.admission": "minipage.scheduling.first_chunk",
    "minipage.trace.boxes": "minipage.trace.drawing.request_lines",
    "minipage.trace.comparison": "minipage.trace.recording.comparison",
    "minipage.trace.demo": "minipage.trace.playing.demo",
    "minipage.trace.events": "minipage.trace.recording.events",
    "minipage.trace.exports": "minipage.trace.drawing.exports",
    "minipage.trace.frames": "minipage.trace.recording.frames",
    "minipage.trace.glyphs": "minipage.trace.drawing.glyphs",
    "minipage.trace.help": "minipage.trace.playing.help",
    "minipage.trace.html": "minipage.trace.drawing.html",
    "minipage.trace.keys": "minipage.trace.playing.keys",
    "minipage.trace.lanes": "minipage.trace.drawing.lane_lines",
    "minipage.trace.player": "minipage.trace.playing.player",
    "minipage.trace.pool": "minipage.trace.drawing.pool_lines",
    "minipage.trace.recorder": "minipage.trace.recording.recorder",
    "minipage.trace.replay": "minipage.trace.recording.trace",
    "minipage.trace.scenarios": "minipage.trace.playing.scenarios",
    "minipage.trace.sights": "minipage.trace.playing.cues",
    "minipage.trace.sizes": "minipage.trace.playing.pool_size",
    "minipage.trace.spinner": "minipage.trace.playing.spinner",
    "minipage.trace.state": "minipage.trace.recording.replay",
    "minipage.trace.story": "minipage.trace.playing.story",
    "minipage.trace.terminal": "minipage.trace.drawing.terminal",
    "minipage.trace.vocabulary": "minipage.trace.recording.vocabulary",
    "minipage.trace.walk": "minipage.trace.recording.attention_walk",
    "minipage.trace.walk_lines": "minipage.trace.drawing.walk_lines",
}
RENAMED = {  # old: new, of what modules hold
    "minipage.engine.prompts.chat_prompts": "minipage.engine.conversations.chat_prompts",
    "minipage.scheduling.Status": "minipage.scheduling.GroupStatus",
    "minipage.scheduling.group.Status": "minipage.scheduling.group.GroupStatus",
    "minipage.scheduling.group.Chunk": "minipage.scheduling.chunks.Chunk",
    "minipage.scheduling.group.blocks_to_allocate": "minipage.scheduling.chunks.blocks_for",
    "minipage.scheduling.plan.blocks_for": "minipage.scheduling.chunks.blocks_for",
    "minipage.scheduling.plan.count_tokens": "minipage.scheduling.chunks.count_tokens",
    "minipage.scheduling.policy.victim": "minipage.scheduling.preemption.victim",
    "minipage.scheduling.scheduler.StepPlan": "minipage.scheduling.plan.StepPlan",
    "minipage.worker.ranks.process_group.Group": "minipage.worker.ranks.process_group.ProcessGroup",
}
ATTRIBUTES = {  # of a class, old: new
    "minipage.attention.kv_cache.KVCache": {"layer": "at_place"},
    "minipage.engine.request.Request": {"draw": "next_draw"},
    "minipage.memory.block_pool.BlockPool": {"on_reuse": "on_evict"},
    "minipage.memory.block_table.BlockTable": {"keys": "block_hashes"},
    "minipage.memory.prefix_cache.PrefixCache": {
        "key": "block_hash",
        "root": "root_hash",
        "num_queried_tokens": "pool.owner().num_queried_tokens",  # the scheduler's
        "num_hit_tokens": "pool.owner().num_hit_tokens",
    },
    "minipage.scheduling.group.SequenceGroup": {
        "most_blocks": "max_blocks",
        "most_tokens": "longest_that_fits",
        "unscored": "to_score",
    },
    "minipage.scheduling.chunks.Chunk": {"samplers": "receivers"},
}
COMPUTED: dict[str, dict[str, tuple[str, Callable[[Any], Any]]]] = {  # of a class, old: (new, the old one's value)
    "minipage.scheduling.chunks.Chunk": {
        "positions_with_logits": ("rows", lambda chunk: [position for position, _ in chunk.rows]),
        "scored": ("rows", lambda chunk: [position for position, _ in chunk.rows if position in chunk.group.to_score]),
    },
}
WERE_TUPLES = "minipage.scheduling.chunks.Chunk", "minipage.scheduling.plan.StepPlan"
POOL, CACHE = "minipage.memory.block_pool.BlockPool", "minipage.memory.prefix_cache.PrefixCache"


def keep_old_names(room: str) -> None:
    """Give what a room holds its old names, too."""
    for path, names in ATTRIBUTES.items():
        if path.startswith(f"{room}."):
            for old, new in names.items():
                cls, alias = find(path), renamed(new)
                setattr(cls, old, alias)
                alias.__set_name__(cls, old)
    for path, follows in COMPUTED.items():
        if path.startswith(f"{room}."):
            for old, (new, value) in follows.items():
                setattr(find(path), old, computed(old, new, value))
    for path in WERE_TUPLES:
        if path.startswith(f"{room}."):
            was_tuple(find(path))
    for module in {old.rpartition(".")[0] for old in RENAMED}:
        if f"{module}.".startswith(f"{room}."):
            setattr(sys.modules[module], "__getattr__", renamed_in(module))  # noqa: B010
    if CACHE.startswith(f"{room}."):
        heed_old_pools(find(CACHE), find(POOL))


def find(path: str) -> Any:
    """What a module holds: "module.name"."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def heed_old_pools(cache: Any, pool_class: type) -> None:
    """A prefix cache has to learn what its pool evicts, from a pool of one's own with the old names, too."""
    init = cache.__init__

    @wraps(init)
    def listening(self: Any, pool: Any) -> None:
        accept_old_names(type(pool), pool_class)
        init(self, pool)

    cache.__init__ = listening


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    message = f"{old} is now {new}; the old name goes in the next version."
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


class renamed:
    """The old name of an attribute or a method; the new one may be a path: `renamed("pool.owner().num_hit_tokens")`."""

    def __init__(self, new: str) -> None:
        self.new = new
        self.old = ""
        self.owner: type | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner = owner
        self.old = name
        if "__init_subclass__" not in vars(owner):
            hook: Any = classmethod(lambda cls: accept_old_names(cls, owner))
            owner.__init_subclass__ = hook  # type: ignore[method-assign]

    def __get__(self, instance: Any, cls: type | None = None) -> Any:
        warn(self.old, self.new)
        if instance is None:
            return getattr(cls, self.new)
        if self.owner and self._was_overridden_by(type(instance)):
            # Then super() asks, and wants the method of the class above, not the overriding one again.
            return vars(self.owner)[self.new].__get__(instance, type(instance))
        *path, name = self.new.split(".")
        return getattr(follow(instance, path), name)

    def __set__(self, instance: Any, value: object) -> None:
        warn(self.old, self.new)
        *path, name = self.new.split(".")
        setattr(follow(instance, path), name, value)

    def _was_overridden_by(self, cls: type) -> bool:
        first = next((base for base in cls.__mro__ if self.old in vars(base)), None)
        return first is not self.owner and isinstance(vars(self.owner).get(self.new), FunctionType)


def computed(old: str, new: str, value: Callable[[Any], Any]) -> property:
    """The old name of an attribute that is not kept under any name, but can be worked out."""

    def work_out(self: Any) -> Any:
        warn(old, new)
        return value(self)

    return property(work_out)


def was_tuple(cls: type[T]) -> type[T]:
    """A dataclass that was a NamedTuple: it can still be unpacked."""

    def unpack(self: Any) -> Iterator[Any]:
        names = [each.name for each in fields(self)]
        warn(f"{cls.__name__} as a tuple", ", ".join(f".{name}" for name in names))
        return iter([getattr(self, name) for name in names])

    setattr(cls, "__iter__", unpack)  # noqa: B010
    setattr(cls, "_replace", replace)  # noqa: B010
    return cls


def follow(start: Any, path: list[str]) -> Any:
    for part in path:
        start = getattr(start, part.removesuffix("()"))
        start = start() if part.endswith("()") else start
    return start


def accept_old_names(cls: type, like: type) -> None:
    """Let a class that was written with old names stand in for `like`, which has the new ones."""
    for name, each in vars(like).items():
        if not isinstance(each, renamed) or "." in each.new or isinstance(vars(cls).get(name), renamed):
            continue
        if name in vars(cls) and each.new not in vars(cls):  # a method: from now on it has both names
            warn(f"{cls.__name__}.{name}", each.new, stacklevel=4)
            setattr(cls, each.new, vars(cls)[name])
        elif uses(cls, name) and not uses(cls, each.new):
            warn(f"{cls.__name__}.{name}", each.new, stacklevel=4)
            alias = renamed(each.new)
            alias.old = name
            setattr(cls, name, alias)


def uses(cls: type, name: str) -> bool:
    """Whether any method of a class's own mentions an attribute of this name; a global of the same name is none."""
    methods = [each for each in vars(cls).values() if isinstance(each, FunctionType) and name in each.__code__.co_names]
    steps = (step for method in methods for step in dis.get_instructions(method))
    return any(step.argval == name and step.opname.endswith(("_ATTR", "_METHOD")) for step in steps)


def renamed_in(module: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module, which knows its old names."""

    def find_renamed(name: str) -> Any:
        old = f"{module}.{name}"
        if old not in RENAMED:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(old, RENAMED[old])
        return find(RENAMED[old])

    return find_renamed


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under its old name, and puts the one that took its place there."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        old = next((old for old in (name, name.rpartition(".")[0]) if old in MOVED), None)
        return ModuleSpec(name, self, origin=MOVED[old] + name[len(old) :]) if old else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec and spec.origin
        warn(spec.name, spec.origin, stacklevel=2)
        sys.modules[spec.name] = moved = import_module(spec.origin)  # this is what the import returns
        if any(old.startswith(f"{spec.origin}.") for old in RENAMED):  # what was in it may have a new name, too
            setattr(moved, "__getattr__", renamed_in(spec.origin))  # noqa: B010


def find_moved_modules() -> None:
    """Before all other finders: what is in a package that has moved must not be loaded a second time."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
