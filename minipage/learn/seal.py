"""Whether what grades is still what it was: every function, class and module that was there before they ran.

Places        where something could be changed: the keeper, which never runs their code, looks for them once
sealed        what is at these places now; returns a function that says which of them has something else

Nearly all of about 20,000 names are what they were when the keeper looked: a cell keeps those lists, and makes its own
where its fence has changed something. The function uses nothing but what it holds itself, because any name elsewhere
could be the one that was changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import is_
from os import sep
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

from minipage.learn.hidden import JUDGES

OURS = JUDGES  # here nothing at all may change; elsewhere, nothing that is called
CHANGES_ANYWAY = {"sys", "warnings", "threading", "linecache", "inspect"}  # libraries do, too
COMPILER = "numba", "llvmlite"  # nobody who judges calls it, except where kernels are run in its simulator
DOTTED = tuple(f"{name}." for name in COMPILER)
CALLED = ModuleType, property, staticmethod, classmethod  # or callable


class Names(NamedTuple):
    """Of a module, a class, or what hypothesis keeps of a test."""

    module: str
    owner: str
    get: Callable[[str], Any]  # how to look one up
    names: tuple[str, ...]
    before: list[Any]  # what they were

    def now(self) -> Names:
        """This, if all of them are what they were."""
        is_same = all(map(is_, map(self.get, self.names), self.before))
        return self if is_same else look_up(self.module, self.owner, self.get, self.names)


def look_up(module: str, owner: str, get: Callable[[str], Any], names: tuple[str, ...]) -> Names:
    return Names(module, owner, get, names, [*map(get, names)])


class Places:
    """In all modules that are loaded: their names, those of their classes, and what our functions hold."""

    def __init__(self) -> None:
        self.modules: dict[str, ModuleType] = {}
        self.names: list[Names] = []
        self.contents: list[tuple[str, Any]] = []  # (name, a dictionary, list or set)
        self.cells: list[tuple[str, CellType]] = []  # (name, a variable that a function holds)
        self.classes: list[tuple[str, Any]] = []  # (name, all that a class has)
        self._seen: dict[int, Any] = {}  # by id; kept, so that nothing else takes it

    def look_around(self) -> None:
        """Add what was loaded since the last time."""
        for name, module in [*sys.modules.items()]:
            if isinstance(module, ModuleType) and not (
                name in self.modules or name in CHANGES_ANYWAY or name.startswith("exercise_")
            ):
                self.modules[name] = module
                self._add_module(name, module)

    def of(self, first: str) -> tuple[list[Names], list[Names]]:
        """All that the graders of the module `first` may come to; and just the modules of those who judge."""
        waiting, found = [first, "minipage.learn.judge", "minipage.learn.load"], set[str]()
        while waiting:
            if (name := waiting.pop()) not in found and name in self.modules and is_ours(name):
                found.add(name)
                waiting += filter(None, map(home, [*vars(self.modules[name]).values()]))
        judging = [place for place in self.names if place.module in found and not is_class(place)]
        if any(COMPILER[0] in place.names for place in judging):
            return self.names[:], judging
        return [place for place in self.names if not f"{place.module}.".startswith(DOTTED)], judging

    def _add_module(self, name: str, module: ModuleType) -> None:
        self._add_names(name, name, vars(module), is_ours(name))
        for thing in [*vars(module).values()]:
            if isinstance(thing, type) and thing.__module__ == name and self._is_new(thing):
                owner = f"{name}.{thing.__qualname__}"
                self.classes.append((owner, vars(thing)))
                self._add_names(name, owner, vars(thing), is_ours(name))

    def _add_names(self, module: str, owner: str, namespace: Any, everything: bool) -> None:
        found = [
            key for key, thing in [*namespace.items()] if everything or callable(thing) or isinstance(thing, CALLED)
        ]
        self.names.append(look_up(module, owner, namespace.get, tuple(found)))
        for key in found if everything else ():
            if key != "__builtins__":
                self._add_value(module, f"{owner}.{key}", namespace[key])

    def _add_value(self, module: str, name: str, value: Any) -> None:
        is_function = isinstance(value, FunctionType) and is_ours(value.__module__)
        if not (is_function or type(value) in (dict, list, set, tuple)) or not self._is_new(value):
            return
        if is_function:
            self._add_function(module, name, value)
            return
        if type(value) is not tuple:
            self.contents.append((name, value))
        for item in flat(value):
            self._add_value(module, name, item)

    def _add_function(self, module: str, name: str, function: FunctionType) -> None:
        if handle := getattr(function, "hypothesis", None):  # what is inside of @given
            self._add_names(module, name, vars(handle), everything=True)
            settings = [key for key, value in vars(function).items() if type(value).__name__ == "settings"]
            self.names.append(look_up(module, name, vars(function).get, tuple(settings)))
            self.contents += [(f"{name}.{key}", vars(vars(function)[key])) for key in settings]
        elif any(f"{sep}{room}{sep}" in function.__code__.co_filename for room in ("learn", "promises")):
            for cell in filter(is_set, function.__closure__ or ()):
                self.cells.append((name, cell))
                self._add_value(module, name, cell.cell_contents)

    def _is_new(self, thing: Any) -> bool:
        return id(thing) not in self._seen and self._seen.setdefault(id(thing), thing) is thing


def sealed(places: Places, names: list[Names], judging: list[Names]) -> Callable[..., str]:
    """Returns a function: the name of something that is not what it was; or empty. The lists: from `places.of()`."""
    modules = look_up("", "sys.modules", sys.modules.get, tuple(places.modules))
    everything, ours = [*[place.now() for place in names], modules], [place.now() for place in judging]
    contents = [(name, container, flat(container)) for name, container in places.contents]
    cells = [(name, cell, cell.cell_contents) for name, cell in places.cells]
    classes = [(name, namespace, size(namespace)) for name, namespace in places.classes]
    count, pairs, every, each, same, size_now, flat_now = len, zip, all, map, is_, size, flat

    def changed(only_ours: bool = False) -> str:
        """`only_ours`: just the modules of those who judge, which takes next to no time."""
        for _, owner, get, names, before in ours if only_ours else everything:
            if not every(each(same, each(get, names), before)):
                for key, value in pairs(names, before):
                    if get(key) is not value:
                        return f"{owner}.{key}"
        if only_ours:
            return ""
        for name, namespace, number in classes:
            if count(namespace) != number and size_now(namespace) != number:
                return name
        for name, container, before in contents:
            now = flat_now(container)
            if count(now) != count(before) or not every(each(same, now, before)):
                return name
        for name, cell, value in cells:
            if cell.cell_contents is not value:
                return name
        return ""

    return changed


def size(namespace: Any, count: Callable[[Any], int] = len) -> int:
    """How many names a class has, without the note that copy.copy leaves in it."""
    return count(namespace) - ("__slotnames__" in namespace)


def flat(container: Any, dict: type = dict, type: Any = type) -> list[Any]:
    return [*container.keys(), *container.values()] if type(container) is dict else [*container]


def is_set(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def is_class(place: Names) -> bool:
    return type(place.get.__self__) is not dict  # type: ignore[attr-defined]


def home(thing: Any) -> str:
    """The module that a function or class is from, or that it is itself; if it is ours."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", "")
    return name if isinstance(name, str) and is_ours(name) else ""


def is_ours(module: str | None) -> bool:
    return module == "__main__" or f"{module}.".startswith(OURS)
