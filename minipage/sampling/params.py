"""How a request wants its texts: SamplingParams, and what makes a value valid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NoReturn, TypeAlias

from minipage.errors import InvalidRequestError, shown
from minipage.sampling.beam_params import unfit_for_beams
from minipage.sampling.param_checks import (
    are_pairs,
    are_texts,
    are_whole,
    as_pairs,
    as_plain,
    as_tuple,
    is_real,
    is_whole,
)
from minipage.sampling.structured import StructuredOutputsParams, is_structure

MOST_TEXTS = 16_384  # of one request; as in vLLM


@dataclass(frozen=True)
class SamplingParams:
    """How to generate. Names, meanings and defaults are those of vLLM's SamplingParams.

    Numbers may be NumPy's, and lists anything that can be iterated over. Kept are Python's own numbers, and tuples,
    which nobody can change afterwards; of `logit_bias`, its pairs in the order of the tokens.

    Raises:
        InvalidRequestError: a value makes no sense; the message says which and what is allowed.
    """

    n: int = 1  # number of texts to generate for the prompt, which is computed once
    temperature: float = 1.0  # 0: greedy, always the most likely token
    top_k: int = 0  # keep only this many most likely tokens; 0 or -1: all
    top_p: float = 1.0  # choose among the fewest most likely tokens that together have this probability
    min_p: float = 0.0  # drop tokens less likely than this share of the most likely one
    presence_penalty: float = 0.0  # taken off the logit of every token that the text has already
    frequency_penalty: float = 0.0  # the same, once for each time that the text has it
    repetition_penalty: float = 1.0  # divides positive logits of tokens in prompt or text, multiplies negative ones
    logit_bias: Mapping[Any, float] | Iterable[tuple[Any, float]] | None = None  # {token id: added to its logit}
    bad_words: Iterable[str] | None = None  # texts of which the last token never comes after the others
    allowed_token_ids: Iterable[int] | None = None  # no others are chosen
    structured_outputs: StructuredOutputsParams | None = None  # what the text has to look like
    seed: int | None = None  # makes this request repeatable
    max_tokens: int | None = 16  # most tokens to generate; None: as the context and the pool have room for
    min_tokens: int = 0  # none of this many first tokens ends the text, by a stop string, stop token or end
    stop: str | Iterable[str] | None = None  # stop when the text contains one of these, and cut it off there
    stop_token_ids: Iterable[int] | None = None  # stop after one of these
    ignore_eos: bool = False  # go on after the model's end-of-text token
    beam_width: int | None = None  # search for this many best texts instead of sampling
    length_penalty: float = 1.0  # of beams: above 0 favours long texts, below 0 short ones
    early_stopping: bool | Literal["never"] = False  # of beams: when to be content; see BeamSearch
    logprobs: int | None = None  # report log probabilities: of the token and this many likeliest at each place
    prompt_logprobs: int | None = None  # the same of each token of the prompt, except the first
    skip_special_tokens: bool = True  # leave tokens such as <|endoftext|> out of the text
    include_stop_str_in_output: bool = False  # let the text end with the stop string, or the stop token's text

    def __post_init__(self) -> None:
        given = {field.name: as_plain(getattr(self, field.name)) for field in fields(self)}
        for name, value in given.items():
            as_kept = as_pairs if name == "logit_bias" else as_tuple if name in LISTS else as_plain
            object.__setattr__(self, name, as_kept(value))

        def refuse(name: str, allowed: str) -> NoReturn:
            raise InvalidRequestError(f"{name} is {shown(given[name])}; it must be {allowed}.")

        for name, (is_valid, allowed) in RULES.items():
            if not is_valid(getattr(self, name)):
                refuse(name, allowed)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            refuse("min_tokens", "from 0 to max_tokens")
        for name in unfit_for_beams(self) if self.beam_width else ():
            allowed = f"left out, because beam_width is {self.beam_width}: a beam search draws no tokens"
            refuse(name, f"{allowed}, and keeps the likeliest texts as they are")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def or_none(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_valid(value)


def is_from(least: float, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: is_whole(value) and least <= value <= most


def is_truth(value: Any) -> bool:
    return isinstance(value, bool)


LISTS = "stop", "stop_token_ids", "bad_words", "allowed_token_ids"
Rule: TypeAlias = tuple[Callable[[Any], bool], str]  # whether a value is valid, and what is allowed
AS_MANY: Rule = or_none(is_from(0)), "None or a whole number of at least 0"
SWITCH: Rule = is_truth, "True or False"
WORDS: Rule = or_none(are_texts), "texts, none empty"
PENALTY: Rule = lambda x: is_real(x) and -2 <= x <= 2, "from -2 to 2"
RULES: dict[str, Rule] = {
    "stop": (or_none(lambda x: are_texts((x,) if isinstance(x, str) else x)), WORDS[1]),
    "stop_token_ids": (or_none(are_whole), "token ids"),
    "temperature": (lambda x: is_real(x) and x >= 0, "a finite number of at least 0"),
    "top_k": (is_from(-1), "a whole number; 0 or -1 to keep all tokens"),
    "top_p": (lambda x: is_real(x) and 0 < x <= 1, "above 0 and at most 1"),
    "min_p": (lambda x: is_real(x) and 0 <= x <= 1, "from 0 to 1"),
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "repetition_penalty": (lambda x: is_real(x) and 1e-6 <= x <= 1e6, "from 1e-6 to 1e6"),
    "logit_bias": (or_none(are_pairs), "{token id: a number from -1e30 to 1e30}"),
    "bad_words": WORDS,
    "allowed_token_ids": (or_none(lambda x: are_whole(x) and len(x) > 0), "token ids, at least one"),
    "structured_outputs": (or_none(is_structure), "None or StructuredOutputsParams(...)"),
    "seed": (or_none(is_from(0, 2**64 - 1)), "None or a whole number from 0 to 2**64 - 1"),
    "max_tokens": (or_none(is_from(1)), "None or a whole number of at least 1"),
    "logprobs": AS_MANY,
    "prompt_logprobs": AS_MANY,
    "min_tokens": (is_from(0), "from 0 to max_tokens"),
    "n": (is_from(1, MOST_TEXTS), f"a whole number from 1 to {MOST_TEXTS:,}"),
    "length_penalty": (is_real, "a finite number"),
    "early_stopping": (lambda x: is_truth(x) or x == "never", "True, False or 'never'"),
    "ignore_eos": SWITCH,
    "skip_special_tokens": SWITCH,
    "include_stop_str_in_output": SWITCH,
    "beam_width": (or_none(is_from(1, MOST_TEXTS)), f"a whole number from 1 to {MOST_TEXTS:,}"),
}
