"""What the JSON files of a model folder say: its sizes, and the tokens that end a text."""

from __future__ import annotations

import json
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from minipage.errors import ModelError, shown

LFS_POINTER = b"version https://git-lfs"  # how the file begins that Git leaves in place of a large one

LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 10_000  # far more than any model has; the weights of this many are still listed at once
DEEPEST = 16  # lists in one another


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({why(path, error)}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object. Fetch it again.")
    return content


def with_overrides(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in config.json, and those that count instead: also under names of before, where it has today's."""
    rope = settings.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_parameters" in overrides:
        return {**settings, **overrides}
    names = "rope_theta", "partial_rotary_factor"
    scaling = overrides.get("rope_scaling", rope) or {}
    if isinstance(scaling, dict):
        scaling = {name: rope[name] for name in names if name in rope} | scaling
        scaling |= {name: overrides[name] for name in names if name in overrides}
    return {**settings, **overrides, "rope_parameters": scaling}


def why(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in words that help."""
    try:
        with path.open("rb") as file:
            beginning = file.read(len(LFS_POINTER))
    except (OSError, ValueError):  # the latter: no file can have such a name
        return str(error)
    if beginning == LFS_POINTER:
        return "it is only a pointer of Git LFS: `git lfs pull` in its folder gets the file itself"
    if beginning.startswith((BOM_UTF8, BOM_UTF16_LE, BOM_UTF16_BE)):
        return "an editor has put a byte order mark in front: save it as UTF-8 without one"
    return str(error)


def refuse_other(settings: dict[str, Any], computed: Mapping[str, tuple[Any, ...]], choice: str) -> None:
    """Raise ModelError if a setting is not among those that are computed, of which the first is the usual one."""
    for name, values in computed.items():
        if settings.get(name, values[0]) not in values:
            raise ModelError(
                f"it says {name} = {shown(settings[name])}, but minipage computes only {values[0]!r}. Choose {choice}."
            )


def read_sizes(
    settings: dict[str, Any],
    what: str,
    sizes: Mapping[str, str],
    optional: Collection[str] = (),
    numbers: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The sizes of `what`, by our names; ModelError if one is missing or cannot be.

    Args:
        sizes: our names, and others that are heeded first.
        optional: whole numbers too, but left out where they are not given.
        numbers: any from 0 on, with what they are if they are not given.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    found = {name: given.get(other, given.get(name)) for name, other in sizes.items()}
    found |= {name: given[name] for name in optional if name in given}
    measures = {name: given.get(name, default) for name, default in (numbers or {}).items()}
    wrong = {name: n for name, n in found.items() if not is_size(n, MOST_LAYERS if "layer" in name else LARGEST_SIZE)}
    wrong |= {name: number for name, number in measures.items() if not is_measure(number)}
    if wrong:
        listed = ", ".join(f"{name} = {shown(value)}" for name, value in wrong.items())
        raise ModelError(f"it lacks the sizes of {what}, or has them wrong: {listed}. Fetch it again.")
    return found | {name: float(number) for name, number in measures.items()}


def is_size(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def is_measure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def end_tokens(settings: dict[str, Any], folder: Path, vocab_size: int) -> frozenset[int]:
    """Tokens that end a text: those of config.json, and of generation_config.json, if there is one."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    said = (folder / "config.json", settings), (path, generation)
    found = [token_id for file, each in said for token_id in token_ids_in(each.get("eos_token_id"), file)]
    return frozenset(token_id for token_id in found if 0 <= token_id < vocab_size)


def token_ids_in(value: object, path: Path, depth: int = 0) -> list[int]:
    """The whole numbers in what ought to be one or a list of them, and may be null, -1, "50256", ..."""
    if isinstance(value, list):
        if depth == DEEPEST:
            raise ModelError(f"{path} has an eos_token_id of lists in lists in lists; give a list of token ids.")
        return [token_id for each in value for token_id in token_ids_in(each, path, depth + 1)]
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 20:
        return [int(value)]
    return [value] if isinstance(value, int) and not isinstance(value, bool) else []
