"""Old names, which go on working for one version, each with a DeprecationWarning. Nothing in minipage uses them.

    in a class       keys = renamed("block_hashes")
    in a module      __getattr__ = renamed_in(__name__, Status="GroupStatus")
    a module         the table MOVED, below
    a tuple          @was_tuple, on the dataclass that it has become

A class that was written with the old names keeps working too, be it a subclass (`def key(...)` overrides `block_hash`)
or one of its own that takes the place of minipage's (`accept_old_names`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")
MOVED = {  # old module: new module; what is in an old package moves along
    "minipage.batch": "minipage.worker.batch",
    "minipage.beam_search": "minipage.sampling.beam_search",
    "minipage.build": "minipage.engine.build",
    "minipage.changes": "minipage.engine.changes",
    "minipage.completion": "minipage.engine.completion",
    "minipage.gpu.arrays": "minipage.worker.gpu.views",
    "minipage.gpu.batches": "minipage.worker.gpu.next_batch",
    "minipage.gpu.sampling": "minipage.worker.gpu.draw",
    "minipage.gpu": "minipage.worker.gpu",
    "minipage.intake": "minipage.engine.intake",
    "minipage.model_runner": "minipage.worker.runner",
    "minipage.options": "minipage.cli_options",
    "minipage.prompts": "minipage.engine.prompts",
    "minipage.request": "minipage.engine.request",
    "minipage.attention.compiled": "minipage.simd.options",
    "minipage.attention.halves": "minipage.simd.halves",
    "minipage.attention.vectors": "minipage.simd.vectors",
    "minipage.memory.contiguous": "minipage.simulate.baselines",
}


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
        if self.owner and self._was_overridden_by(
            type(instance)
        ):  # then super() asks, and wants ours, not the overriding one again
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
    """Whether any method of a class's own mentions an attribute of this name."""
    return any(isinstance(each, FunctionType) and name in each.__code__.co_names for each in vars(cls).values())


def renamed_in(module: str, **names: str) -> Callable[[str], Any]:
    """A module's `__getattr__`, which knows its old names: renamed_in(__name__, old="new", Old="new.module.New")."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", names[name])
        home, _, new = names[name].rpartition(".")
        return getattr(import_module(home or module), new)

    return find


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
        sys.modules[spec.name] = import_module(spec.origin)  # this is what the import returns


def find_moved_modules() -> None:
    """Before all other finders: what is in a package that has moved must not be loaded a second time."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
