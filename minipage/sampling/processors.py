"""What a request may ask to be done to its logits, before a token is chosen from them. vLLM's rules, in vLLM's order:

    logits ─▶ only the allowed ─▶ + bias ─▶ repetition ─▶ - frequency, presence ─▶ temperature, top_k ... (sampler.py)

    allowed      structured_outputs and allowed_token_ids: any other token gets -inf
    bias         logit_bias; and -inf for a token that completes one of bad_words, or ends the text before min_tokens
    repetition   tokens of the prompt or the text: a positive logit is divided by it, a negative one multiplied
    frequency    is taken off once for each time that the text has the token; presence once, if it has it at all

Few tokens are concerned, except by the first, so an Adjustment names them. All of it follows from the tokens of a text:
whatever else is in the batch, and however often the request is preempted, its logits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minipage.errors import InvalidRequestError, shown
from minipage.sampling.param_checks import check_token_ids
from minipage.sampling.params import SamplingParams
from minipage.sampling.structured import Bits, Grammar

EXCLUDED = "Together, these exclude all of them: "  # in the sentence of a request that can blame only itself


class Adjustment(NamedTuple):
    """What is done to one row of logits [V]: to k of its tokens, and to those that are not allowed."""

    token_ids: npt.NDArray[np.int64]  # [k], each once
    bias: npt.NDArray[np.float32]  # [k], added
    repetition: npt.NDArray[np.float32]  # [k], then divides what is positive and multiplies what is not
    penalty: npt.NDArray[np.float32]  # [k], then taken off
    allowed: Bits | None = None  # [ceil(V / 8)]; None: all

    def apply(self, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[V] -> [V], a new row."""
        adjusted = logits.copy() if self.allowed is None else only_those(self.allowed, logits)  # [V]
        with np.errstate(all="ignore"):  # what overflows is infinite, and no number, as it is on a GPU
            changed = penalized(adjusted[self.token_ids], self.bias, self.repetition, self.penalty, np.where)  # [k]
        adjusted[self.token_ids] = changed
        return adjusted

    def leaves_nothing(self, vocab_size: int) -> bool:
        """Whether no token can be chosen, whatever the logits are."""
        return not np.isfinite(self.apply(np.zeros(vocab_size, np.float32))).any()


def only_those(allowed: Bits, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[V] -> [V], a new row: -inf for all other tokens; allowed: [ceil(V / 8)]."""
    return np.where(np.unpackbits(allowed, count=len(logits), bitorder="little"), logits, -np.inf)  # [V]


def penalized(logits: Any, bias: Any, repetition: Any, penalty: Any, where: Any) -> Any:
    """The logits of some tokens after bias and penalties; all arrays are of one shape, NumPy's or PyTorch's."""
    biased = logits + bias
    return where(biased > 0, biased / repetition, biased * repetition) - penalty


class Processors:
    """What one request asks for.

    Args:
        prompt_token_ids: repetition counts these, too.
        stop_token_ids: tokens that would end a text.
        bad_words: the tokens of each text that must not come.
        vocab_size: V.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        stop_token_ids: Collection[int],
        bad_words: Sequence[Sequence[int]],
        vocab_size: int,
    ) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self._prompt = np.unique(np.array(prompt_token_ids, np.int64))  # [different tokens]
        self._stop_token_ids = list(stop_token_ids)
        self._bad_words = [list(word) for word in bad_words]
        self._biased = np.array([token for token, _ in params.logit_bias or ()], np.int64)  # [num_biased]
        self._bias = np.array([bias for _, bias in params.logit_bias or ()], np.float32)  # [num_biased]
        self._allowed = as_bits(params.allowed_token_ids, vocab_size)
        self._has_penalties = has_penalties(params)

    @staticmethod
    def are_wanted(params: SamplingParams) -> bool:
        """Whether logits are ever changed; usually they are not, and then it costs nothing."""
        structure = params.structured_outputs or params.allowed_token_ids
        return bool(structure or params.logit_bias or params.bad_words or params.min_tokens or has_penalties(params))

    def exclusion(self, adjustment: Adjustment | None, grammar: Grammar | None) -> str:
        """Why no token can be chosen after an adjustment, as the end of a sentence; empty if some can be."""
        if adjustment is None or not adjustment.leaves_nothing(self.vocab_size):
            return ""
        reason = f": {grammar.error}" if grammar and grammar.error else ""
        names = "structured_outputs", "allowed_token_ids", "bad_words", "logit_bias", "min_tokens"
        excluding = ", ".join(name for name in names if getattr(self.params, name))
        return f"{reason}. {EXCLUDED}{excluding}."

    def adjustment(self, output: list[int], grammar: Grammar | None = None) -> Adjustment | None:
        """What is done to the logits after the generated tokens `output`, which `grammar` has seen; None: nothing."""
        params, forbidden, repeated = self.params, self._forbidden(output), NO_TOKENS
        seen, counts = NO_TOKENS, NO_TOKENS  # [different tokens of the output] each
        if self._has_penalties:
            seen, counts = np.unique(np.array(output, np.int64), return_counts=True)
        if params.repetition_penalty != 1:
            repeated = np.concatenate([self._prompt, seen])  # [k or more]
        token_ids = np.unique(np.concatenate([self._biased, forbidden, repeated, seen]))  # [k]
        allowed = self._allowed_by(grammar)
        if allowed is None and len(token_ids) == 0:
            return None
        bias, repetition, penalty = (np.full(len(token_ids), x, np.float32) for x in (0, 1, 0))  # [k] each
        bias[np.searchsorted(token_ids, self._biased)] = self._bias
        bias[np.searchsorted(token_ids, forbidden)] = -np.inf
        repetition[np.searchsorted(token_ids, repeated)] = params.repetition_penalty
        penalty[np.searchsorted(token_ids, seen)] = params.frequency_penalty * counts + params.presence_penalty
        return Adjustment(token_ids, bias, repetition, penalty, allowed)

    def _forbidden(self, output: list[int]) -> npt.NDArray[np.int64]:
        """[num_forbidden]: tokens that would complete a bad word, or end the text too early."""
        completing = [word[-1] for word in self._bad_words if ends_with(output, word[:-1])]
        ending = self._stop_token_ids if len(output) < self.params.min_tokens else []
        return np.array([*completing, *ending], np.int64)

    def _allowed_by(self, grammar: Grammar | None) -> Bits | None:
        if grammar is None:
            return self._allowed
        return grammar.allowed() if self._allowed is None else grammar.allowed() & self._allowed


def make_processors(
    params: SamplingParams,
    prompt_token_ids: Sequence[int],
    stop_token_ids: Collection[int],
    encode: Callable[..., list[int]] | None,
    vocab_size: int,
) -> Processors | None:
    """What one request asks for; None: nothing, so its logits stay as they are. `encode`: the tokenizer's, if any.

    Raises InvalidRequestError for what this model cannot do.
    """
    if not Processors.are_wanted(params):
        return None
    check_token_ids(tuple(token for token, _ in params.logit_bias or ()), vocab_size, "logit_bias")
    check_token_ids(tuple(params.allowed_token_ids or ()), vocab_size, "allowed_token_ids")
    bad_words = [ids for word in params.bad_words or () for ids in spellings(word, encode, vocab_size)]
    return Processors(params, prompt_token_ids, stop_token_ids, bad_words, vocab_size)


def spellings(word: str, encode: Callable[..., list[int]] | None, vocab_size: int) -> list[list[int]]:
    """The tokens of a bad word where a text begins with it, and, by vLLM's rule, where a space comes before it: if that
    makes another first token, and no more of them."""
    if encode is None:
        raise InvalidRequestError("bad_words are texts, but this model has no tokenizer to read them with.")
    alone, spaced = (encode(space + word.lstrip(), add_special_tokens=False) for space in ("", " "))
    if not alone:
        raise InvalidRequestError(f"bad_words has {shown(word)}, which the tokenizer makes no token of.")
    is_other = len(spaced) == len(alone) and spaced[0] != alone[0]
    return [ids for ids in ([alone, spaced] if is_other else [alone]) if max(ids) < vocab_size]


NO_TOKENS = np.zeros(0, np.int64)  # [0]


def has_penalties(params: SamplingParams) -> bool:
    return (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) != (0, 0, 1)


def ends_with(tokens: list[int], tail: list[int]) -> bool:
    return not tail or tokens[-len(tail) :] == tail


def as_bits(token_ids: Iterable[int] | None, vocab_size: int) -> Bits | None:
    if token_ids is None:
        return None
    is_one = np.zeros(vocab_size, bool)  # [V]
    is_one[list(token_ids)] = True
    return np.packbits(is_one, bitorder="little")  # [ceil(V / 8)]
