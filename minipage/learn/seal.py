"""Whether what grades is still what it was: every function, class and module that was there before they ran.

`take()` writes down what each name stands for, and returns a function that says which one stands for something else
now. It uses nothing but what it holds itself, because any name elsewhere could be the one that was changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import is_
from os import sep
from types import FunctionType, ModuleType
from typing import Any

from minipage.learn.hidden import JUDGES

OURS = JUDGES  # here nothing at all may change; elsewhere, nothing that is called
CHANGES_ANYWAY = {"sys", "warnings", "threading", "linecache", "inspect"}  # libraries do, too


def take(hidden: dict[str, ModuleType]) -> Callable[..., str]:
    """Returns a function: the name of something that is not what it was; or empty. `hidden` modules are ours, too."""
    kept: list[tuple[str, Any, Any, Any]] = []  # (name, a namespace, the key in it, what it stood for)
    contents: list[tuple[str, Any, list[Any]]] = []  # (name, a container, what was in it)
    cells: list[tuple[str, Any, Any]] = []  # (name, a variable that a function holds, what it was)
    full: list[tuple[str, Any, int]] = []  # (name, the namespace of a class, how many names it has)
    seen: set[int] = set()  # of values
    classes: set[int] = set()

    def keep_function(name: str, function: FunctionType) -> None:
        if handle := getattr(function, "hypothesis", None):  # what is inside of @given
            keep_names(name, vars(handle), everything=True)
            for key, value in vars(function).items():
                if type(value).__name__ == "settings":
                    kept.append((f"{name}.{key}", vars(function), key, value))
                    contents.append((f"{name}.{key}", vars(value), flat(vars(value))))
        elif any(f"{sep}{room}{sep}" in function.__code__.co_filename for room in ("learn", "promises")):
            keep_cells(name, function)

    def keep_cells(name: str, function: FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                value = cell.cell_contents
            except ValueError:  # not set yet
                continue
            cells.append((name, cell, value))
            keep_value(name, value)

    def keep_value(name: str, value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if type(value) in (dict, list, set):
            contents.append((name, value, flat(value)))
        if type(value) in (list, tuple):
            for item in value:
                keep_value(name, item)
        elif type(value) is dict:
            for item in value.values():
                keep_value(name, item)
        elif isinstance(value, FunctionType) and is_ours(value.__module__):
            keep_function(name, value)

    def keep_names(prefix: str, names: Any, everything: bool) -> None:
        for key, value in list(names.items()):
            if everything or callable(value) or isinstance(value, ModuleType | property | staticmethod | classmethod):
                kept.append((f"{prefix}.{key}", names, key, value))
            if everything and key != "__builtins__":
                keep_value(f"{prefix}.{key}", value)

    def size(names: Any, count: Callable[[Any], int] = len) -> int:
        """How many names a class has, without the note that copy.copy leaves in it."""
        return count(names) - ("__slotnames__" in names)

    def keep_class(cls: type) -> None:
        if id(cls) not in classes:
            classes.add(id(cls))
            full.append((f"{cls.__module__}.{cls.__qualname__}", vars(cls), size(vars(cls))))
            keep_names(f"{cls.__module__}.{cls.__qualname__}", vars(cls), is_ours(cls.__module__))

    everything = sys.modules | hidden
    modules = [(name, module) for name, module in everything.items() if isinstance(module, ModuleType)]
    for name, module in modules:
        if name in CHANGES_ANYWAY or name.startswith("exercise_"):
            continue
        kept.append((name, sys.modules, name, sys.modules[name]))
        keep_names(name, vars(module), is_ours(name))
        for thing in list(vars(module).values()):
            if isinstance(thing, type) and thing.__module__ == name:
                keep_class(thing)

    absent, count, pairs, every, each, same = object(), len, zip, all, map, is_

    ours = [fact for fact in kept if fact[0].startswith(OURS) and isinstance(fact[1], dict)]
    at_a_glance = [  # the same by namespace: (how to look a name up, names, what they stood for)
        (facts[0][1].get, [key for _, _, key, _ in facts], [value for _, _, _, value in facts])
        for facts in by_namespace(ours)
    ]

    def changed(only_ours: bool = False) -> str:
        """`only_ours`: just the modules of those who judge, which takes next to no time."""
        if only_ours:
            for get, keys, values in at_a_glance:
                if not every(each(same, each(get, keys), values)):
                    break
            else:
                return ""
        for name, namespace, key, value in ours if only_ours else kept:
            if namespace.get(key, absent) is not value:
                return name
        if only_ours:
            return ""
        for name, namespace, number in full:
            if size(namespace) != number:
                return name
        for name, container, before in contents:
            now = flat_now(container)
            if count(now) != count(before):
                return name
            for one, other in pairs(now, before):
                if one is not other:
                    return name
        for name, cell, value in cells:
            if cell.cell_contents is not value:
                return name
        return ""

    def flat_now(container: Any, dict: type = dict, list: type = list, type: Any = type) -> Any:
        return [*container.keys(), *container.values()] if type(container) is dict else list(container)

    return changed


def by_namespace(facts: list[tuple[str, Any, Any, Any]]) -> list[list[tuple[str, Any, Any, Any]]]:
    found: dict[int, list[tuple[str, Any, Any, Any]]] = {}
    for fact in facts:
        found.setdefault(id(fact[1]), []).append(fact)
    return list(found.values())


def is_ours(module: str | None) -> bool:
    return module == "__main__" or f"{module}.".startswith(OURS)


def flat(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if type(container) is dict else list(container)
