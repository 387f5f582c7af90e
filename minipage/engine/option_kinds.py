"""What kind of value each option of `LLM` takes, where that is not a number. What the values mean is up to the parts.

The parts compare names, and an array is compared number by number, so whatever is no name is refused before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Number
from os import PathLike
from typing import Any, NamedTuple, get_args

import numpy as np

from minipage.attention.quantize import KV_CACHE_DTYPES
from minipage.errors import ConfigurationError, shown
from minipage.memory.eviction import EVICTIONS
from minipage.model.checkpoint import LOAD_FORMATS
from minipage.model.place import DEVICES, DTYPES
from minipage.scheduling import POLICIES, Preemption


class Kind(NamedTuple):
    """What is said of an option that is neither this nor its default."""

    words: str  # it must be ...
    has: Callable[[Any], bool]


def is_name(value: object) -> bool:
    return value is None or isinstance(value, str)  # None is left to the parts, for some of which it is a choice


def is_file_name(value: object) -> bool:
    """Also of one that is still to be made. A pipe would be waited for, and a device replaced."""
    return isinstance(value, str | PathLike) and (os.path.isfile(value) or not os.path.exists(value))


def one_of(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", is_name)


def function_or(*names: str) -> Kind:
    return Kind(f"a function or one of {', '.join(names)}", lambda value: is_name(value) or callable(value))


def part(what: str, method: str) -> Kind:
    """Of anybody's make, so known by what it can do."""
    return Kind(f"a {what}, which has {method}()", lambda value: callable(value) or hasattr(value, method))


FLAG = Kind("True or False", lambda value: isinstance(value, bool | np.bool))
KINDS = {
    "device": one_of(*DEVICES["torch"]),
    "arrays": one_of(*DTYPES),
    "dtype": one_of(*DTYPES["torch"]),
    "kv_cache_dtype": one_of("auto", *KV_CACHE_DTYPES),
    "quantization": Kind("None or int8", is_name),
    "load_format": one_of(*LOAD_FORMATS),
    "preemption": one_of(*get_args(Preemption)),
    "attention": function_or("cpu", "loops", "reference", "cuda"),
    "policy": function_or(*POLICIES),
    "eviction": function_or(*EVICTIONS),
    "enable_prefix_caching": FLAG,
    "enforce_eager": FLAG,
    "scheduler_reserve_full_isl": FLAG,
    "async_scheduling": FLAG,
    "block_pool": part("block pool", "allocate_many"),
    "scheduler": part("scheduler", "schedule"),
    "block_table": Kind("a class", callable),
    "progress": Kind("a function", callable),
    "kv_offloading_path": Kind("the name of a file", is_file_name),
}
SPECULATIVE = {
    "method": one_of("ngram", "draft_model"),
    "model": Kind("the name of a model", lambda value: isinstance(value, str | PathLike | None)),
    "only_if_quicker": FLAG,
}


def check_kinds(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ConfigurationError for an option that is of no kind that it can have; given: all of them, by name."""
    check("", KINDS, given, defaults)
    config = given["speculative_config"]
    if isinstance(config, Mapping):
        check("speculative_config: ", SPECULATIVE, config, {})


def check(where: str, kinds: Mapping[str, Kind], given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for option, kind in kinds.items():
        if option in given and given[option] is not defaults.get(option) and not kind.has(given[option]):
            raise ConfigurationError(f"{where}{option} is {shown(given[option])}; it must be {kind.words}.")


def is_same(value: object, default: object) -> bool:
    """Whether a value is the default, even if it is of a kind that cannot be compared, or not with one answer."""
    return value is default or (isinstance(value, Number | str) and value == default)
