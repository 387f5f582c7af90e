"""What the JSON files of a model folder say: its sizes, and the tokens that end a text."""

from __future__ import annotations

import json
import sys
import warnings
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from minipage.errors import ModelError, shown

LFS_POINTER = b"version https://git-lfs"  # how the file begins that Git leaves in place of a large one

TOKENIZER_CONFIG = "tokenizer_config.json"
OPTIONAL_FILES = ["added_tokens.json", "special_tokens_map.json", TOKENIZER_CONFIG]  # of a tokenizer

LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 10_000  # far more than any model has; the weights of this many are still listed at once
DEEPEST = 16  # lists in one another


def read_json(path: Path, what: str = "JSON object", advice: str = "Fetch it again.") -> dict[str, Any]:
    """The object that a file holds; `what` it is and what to do without it are for the ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({why(path, error)}). {advice}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, and no {what}. {advice}")
    return content


def read_token_files(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What OPTIONAL_FILES say: the last, where it describes tokens, counts alone."""
    ids, named, config = (read_json(folder / f) if (folder / f).exists() else {} for f in OPTIONAL_FILES)
    return (ids, named, config) if config.get("added_tokens_decoder") is None else ({}, {}, config)


class Settings(dict[str, Any]):
    """The settings of a model, which know by which names they were looked for, and which were said by hf_overrides."""

    def __init__(self, settings: Mapping[str, Any], asked: Iterable[str] = (), said: Collection[str] = ()) -> None:
        super().__init__(settings)
        self.asked = set(asked)
        self.said = said

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)

    def __iter__(self) -> Iterator[str]:
        self.asked |= set(self.keys())  # by whoever goes through all of them, or makes a dict of them
        return super().__iter__()


def with_overrides(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> Settings:
    """The settings in config.json, and those that count instead: also under names of before, where it has today's.

    Of a config.json with both, rope_scaling counts, as in transformers: who stretches a model writes it in there.
    """
    rope = settings.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_parameters" in overrides:
        return Settings({**settings, **overrides}, said=overrides)
    names = "rope_theta", "partial_rotary_factor"
    scaling = overrides.get("rope_scaling", settings.get("rope_scaling") or rope) or {}
    if isinstance(scaling, dict):
        scaling = {name: rope[name] for name in names if name in rope} | scaling
        scaling |= {name: overrides[name] for name in names if name in overrides}
    return Settings({**settings, **overrides, "rope_parameters": scaling}, (*names, "rope_scaling"), overrides)


def warn_of_unknown(overrides: Mapping[str, Any], given: Mapping[str, Any], settings: Settings) -> None:
    """Warn of settings that are overridden although config.json, which is `given`, lacks them, and that nobody has
    looked for: probably they are misspelt. vLLM takes such names, too, and says nothing."""
    for name in [name for name in overrides if name not in given and name not in settings.asked]:
        alike = get_close_matches(str(name), sorted(settings.asked | given.keys()), 1)
        hint = f" Do you mean {alike[0]!r}?" if alike else ""
        message = f"hf_overrides has {shown(name)}, which neither config.json nor this architecture knows: no effect."
        warnings.warn(message + hint, stacklevel=2)


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


def refuse_disputed(settings: Mapping[str, Any], name: str) -> None:
    """Raise ModelError for a setting that nobody knows the meaning of in such a model, unless hf_overrides say it."""
    if name not in getattr(settings, "said", ()):
        raise ModelError(
            f"its {name} is {shown(settings[name])}, which transformers ignores in such a model, and vLLM heeds. To "
            f"have it heeded, give it in hf_overrides, too; to have it ignored, hf_overrides={{{name!r}: None}}."
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
    found = {name: first_given(settings, other, name) for name, other in sizes.items()}
    found |= {name: settings[name] for name in optional if settings.get(name) is not None}
    measures = {name: first_given(settings, name, default=default) for name, default in (numbers or {}).items()}
    wrong = {name: n for name, n in found.items() if not is_size(n, MOST_LAYERS if "layer" in name else LARGEST_SIZE)}
    wrong |= {name: number for name, number in measures.items() if not is_measure(number)}
    if wrong:
        listed = ", ".join(f"{name} = {shown(value)}" for name, value in wrong.items())
        raise ModelError(f"it lacks the sizes of {what}, or has them wrong: {listed}. Fetch it again.")
    return found | {name: float(number) for name, number in measures.items()}


def first_given(settings: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """What is given under the first of these names that has a value other than null."""
    values = [settings.get(name) for name in names]
    return next((value for value in values if value is not None), default)


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
