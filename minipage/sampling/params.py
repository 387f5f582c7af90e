"""How a request wants its texts: SamplingParams, and what makes a value valid."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, Literal

from minipage.errors import InvalidRequestError, shown

MOST_TEXTS = 16_384  # of one request; as in vLLM


@dataclass(frozen=True)
class SamplingParams:
    """How to generate. Names, meanings and defaults are those of vLLM's SamplingParams.

    Numbers may be NumPy's, and lists anything that can be iterated over. Kept are Python's own numbers, and tuples,
    which nobody can change afterwards.

    Raises:
        InvalidRequestError: a value makes no sense; the message says which and what is allowed.
    """

    n: int = 1  # number of texts to generate for the prompt, which is computed once
    temperature: float = 1.0  # 0: greedy, always the most likely token
    top_k: int = 0  # keep only this many most likely tokens; 0 or -1: all
    top_p: float = 1.0  # choose among the fewest most likely tokens that together have this probability
    min_p: float = 0.0  # drop tokens less likely than this share of the most likely one
    seed: int | None = None  # makes this request repeatable
    max_tokens: int | None = 16  # most tokens to generate; None: as the context and the pool have room for
    min_tokens: int = 0  # before it has this many, a text ends for no stop string, stop token or end
    stop: str | Iterable[str] | None = None  # stop when the text contains one of these, and cut it off there
    stop_token_ids: Iterable[int] | None = None  # stop after one of these
    ignore_eos: bool = False  # go on after the model's end-of-text token
    beam_width: int | None = None  # search for this many best texts instead of sampling
    length_penalty: float = 1.0  # of beams: above 0 favours long texts, below 0 short ones
    early_stopping: bool | Literal["never"] = False  # of beams: when to be content; see BeamSearch
    logprobs: int | None = None  # report log probabilities: of the token and this many likeliest at each place
    skip_special_tokens: bool = True  # leave tokens such as <|endoftext|> out of the text
    include_stop_str_in_output: bool = False  # let the text end with the stop string, or the stop token's text

    def __post_init__(self) -> None:
        def require(valid: bool, name: str, allowed: str) -> None:
            if not valid:
                raise InvalidRequestError(f"{name} is {shown(getattr(self, name))}; it must be {allowed}.")

        for field in fields(self):
            object.__setattr__(self, field.name, as_plain(getattr(self, field.name)))
        stop, token_ids = as_tuple(self.stop), as_tuple(self.stop_token_ids)
        require(are_texts((stop,) if isinstance(stop, str) else stop), "stop", "texts, none empty")
        require(are_whole(token_ids), "stop_token_ids", "token ids")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", token_ids)
        require(is_real(self.temperature) and self.temperature >= 0, "temperature", "a finite number of at least 0")
        require(is_whole(self.top_k) and self.top_k >= -1, "top_k", "a whole number; 0 or -1 to keep all tokens")
        require(is_real(self.top_p) and 0 < self.top_p <= 1, "top_p", "above 0 and at most 1")
        require(is_real(self.min_p) and 0 <= self.min_p <= 1, "min_p", "from 0 to 1")
        is_seed = self.seed is None or (is_whole(self.seed) and 0 <= self.seed < 2**64)
        require(is_seed, "seed", "None or a whole number from 0 to 2**64 - 1")
        for name, least in (("max_tokens", 1), ("logprobs", 0)):
            value = getattr(self, name)
            allowed = f"None or a whole number of at least {least}"
            require(value is None or (is_whole(value) and value >= least), name, allowed)
        most = math.inf if self.max_tokens is None else self.max_tokens
        require(is_whole(self.min_tokens) and 0 <= self.min_tokens <= most, "min_tokens", "from 0 to max_tokens")
        require(is_whole(self.n) and 1 <= self.n <= MOST_TEXTS, "n", f"a whole number from 1 to {MOST_TEXTS:,}")
        require(self.beam_width is None or self.n == 1, "n", "1 in a beam search, which gives beam_width texts")
        require(is_real(self.length_penalty), "length_penalty", "a finite number")
        knows_when = isinstance(self.early_stopping, bool) or self.early_stopping == "never"
        require(knows_when, "early_stopping", "True, False or 'never'")
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            require(isinstance(getattr(self, name), bool), name, "True or False")
        if self.beam_width is not None:
            is_width = is_whole(self.beam_width) and 1 <= self.beam_width <= MOST_TEXTS
            require(is_width, "beam_width", f"a whole number from 1 to {MOST_TEXTS:,}")
            draws = self.temperature not in (0, 1) or self.top_k > 0 or self.top_p < 1 or self.min_p > 0
            require(
                not draws, "beam_width", "left out when temperature, top_k, top_p or min_p is set: beams are not drawn"
            )
            require(not self.stop_strings, "stop", "empty in a beam search; use stop_token_ids")
            require(self.logprobs is None, "logprobs", "None in a beam search; see cumulative_logprob")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


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
    if isinstance(values, str | bytes | bytearray | memoryview) or not isinstance(values, Iterable):
        return values
    in_order = sorted(values, key=str) if isinstance(values, set | frozenset) else values  # of a set always the same
    return tuple(map(as_plain, in_order))


def are_texts(values: Any) -> bool:
    return values is None or (isinstance(values, tuple) and all(isinstance(text, str) and text for text in values))


def are_whole(values: Any) -> bool:
    return values is None or (isinstance(values, tuple) and all(map(is_whole, values)))
