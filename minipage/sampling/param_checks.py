"""What a value of a parameter may be, whichever library its numbers and lists come from."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from minipage.errors import InvalidRequestError, shown


def is_whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))  # usually the first


def is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_plain(value: Any) -> Any:
    """NumPy's and PyTorch's numbers and arrays as Python's own numbers and lists; anything else as it is.

    Raises:
        InvalidRequestError: an array that has no list of its members: a sparse one, or one without memory.
    """
    if not (hasattr(value, "tolist") and hasattr(value, "ndim")):
        return value
    try:
        return value.tolist()
    except Exception as error:  # each library, and each layout, raises its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = f"a {type(value).__name__} cannot be made a list ({reason}); give a list or a plain array."
        raise InvalidRequestError(message) from error


def as_tuple(values: Any) -> Any:
    """The members of anything that can be iterated over. What is one thing, a text for example, stays as it is."""
    values = as_plain(values)  # an array without dimensions is one thing, and cannot be iterated over
    if isinstance(values, str | bytes | bytearray | memoryview) or not isinstance(values, Iterable):
        return values
    in_order = sorted(values, key=str) if isinstance(values, set | frozenset) else values  # of a set always the same
    return tuple(map(as_plain, in_order))


def as_pairs(values: Any) -> Any:
    """The sorted pairs of a mapping from token ids. JSON has texts for keys: {"50256": -100}."""
    if values is None:
        return None
    try:
        pairs = dict(values).items()
        return tuple(sorted((as_token_id(key), as_plain(value)) for key, value in pairs))
    except (TypeError, ValueError):
        return [values]  # no tuple of pairs; whoever asked for them says so


def as_token_id(key: Any) -> Any:
    return int(key) if isinstance(key, str) else as_plain(key)


def are_pairs(values: Any) -> bool:
    """Whether each is a token and a number; with this one and any penalty, a logit stays within what float32 holds."""
    return isinstance(values, tuple) and all(is_whole(t) and is_real(x) and abs(x) <= 1e30 for t, x in values)


def are_texts(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(text, str) and text for text in values)


def are_whole(values: Any) -> bool:
    return isinstance(values, tuple) and all(map(is_whole, values))


def check_token_ids(token_ids: Sequence[Any], vocab_size: int, what: str) -> None:
    """Raise InvalidRequestError unless all are tokens of the model."""
    for token in token_ids:
        if not is_whole(token) or not 0 <= token < vocab_size:
            raise InvalidRequestError(f"{what} has the token id {shown(token)}; this model has 0 to {vocab_size - 1}.")
