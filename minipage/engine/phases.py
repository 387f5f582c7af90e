"""How a part comes to stand between an engine and its phases: speculation, or a tier below the pool.

    engine.schedule()  ─▶  Speculation.schedule  ─▶  Offloading.schedule  ─▶  Engine.schedule

The engine knows nothing of them: its instance gets other methods, which call those that they replace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any


def stand_between(engine: object, part: object, *names: str) -> dict[str, Callable[..., Any]]:
    """Let the methods of `part` with these names take the place of the engine's. Returns those that they replace."""
    replaced = {name: getattr(engine, name) for name in names}
    for name in names:
        setattr(engine, name, getattr(part, name))
    return replaced


def those_between(engine: object, names: Collection[str]) -> list[object]:
    """Whose methods have taken the place of the engine's; of a function that is nobody's method, itself."""
    return [getattr(method, "__self__", method) for name, method in vars(engine).items() if name in names]
