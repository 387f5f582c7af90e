"""What of minipage a learner's code can get hold of: what its stub imports, errors and records. Nothing else is there.

While it runs, sys.modules has a stand-in for each of minipage's modules, and for the program that judges. They know
each other as before: a function looks names up in its own module, not here. So nothing may be imported meanwhile.
"""

from __future__ import annotations

import enum
import sys
import warnings
from collections.abc import Set
from types import ModuleType
from typing import Any

JUDGES = "minipage.learn.", "minipage.promises."  # modules whose names begin like this judge a learner's code


class Hidden:
    """In the place of a module. What Python itself asks of a module (`__path__`, ...) is just not there."""

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        vars(self).update(given, __name__=name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise PermissionError(
            f"an exercise may not use minipage's own {self.__name__}.{name}: of minipage, take only what the stub "
            "imports"
        )


def hide(given: Set[tuple[str, str]]) -> None:
    """Hide all of minipage but these names, (module, name)."""
    real = {name: module for name, module in sys.modules.items() if f"{name}.".startswith("minipage.")}
    stand_ins = {name: Hidden(name, shown(module, given)) for name, module in real.items()}
    for name, stand_in in stand_ins.items():
        owner, _, child = name.rpartition(".")
        if owner:
            vars(stand_ins[owner])[child] = stand_in
    sys.modules.update(stand_ins, __main__=ModuleType("__main__"))  # type: ignore[arg-type]


def shown(module: ModuleType, given: Set[tuple[str, str]]) -> dict[str, Any]:
    names = {name: thing for name, thing in vars(module).items() if not name.startswith("__")}
    with warnings.catch_warnings(action="ignore"):  # of old names, which only the module's __getattr__ knows
        names |= {name: getattr(module, name) for home, name in given if home == module.__name__ and name}
    is_judge = f"{module.__name__}.".startswith(JUDGES)
    return {
        name: thing
        for name, thing in names.items()
        if (module.__name__, name) in given or (is_record(thing) and not is_judge)
    }


def is_record(thing: Any) -> bool:
    """Errors, enumerations and records: no exercise is about these."""
    kinds = BaseException, enum.Enum, tuple
    return isinstance(thing, type) and (issubclass(thing, kinds) or hasattr(thing, "__dataclass_fields__"))
