"""What users hand in: one prompt or many, as text or as token ids, checked before anything is queued."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from minipage.errors import InvalidRequestError
from minipage.model.tokenizer import Tokenizer
from minipage.sampling import is_whole

Prompt: TypeAlias = str | Sequence[int]  # a text, or token ids


def list_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or many -> a list of prompts. A list that begins with a number is one prompt of token ids."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise InvalidRequestError(f"{prompts!r} is no prompt; give a text, a list of token ids, or a list of either.")
    items: list[Any] = list(prompts)
    return [items] if items and is_whole(items[0]) else items


def prompt_token_ids(prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int, max_model_len: int) -> list[int]:
    """The tokens of a prompt, or an InvalidRequestError that says why they cannot be served."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer.json; give the prompt as a list of token ids.")
        prompt = tokenizer.encode(prompt)
    if not isinstance(prompt, Iterable):
        raise InvalidRequestError(f"{prompt!r} is no prompt; give a text or a list of token ids.")
    prompt = list(prompt)
    check_token_ids(prompt, vocab_size, "the prompt")
    if len(prompt) == 0:
        raise InvalidRequestError("the prompt is empty; give at least one token.")
    if len(prompt) >= max_model_len:
        raise InvalidRequestError(
            f"the prompt has {len(prompt)} tokens; with a context of {max_model_len} it may have {max_model_len - 1}, "
            "so that one can be generated. Shorten it."
        )
    return [int(token) for token in prompt]


def check_token_ids(token_ids: Sequence[int], vocab_size: int, what: str) -> None:
    """Raise InvalidRequestError unless all are tokens of the model."""
    for token in token_ids:
        if not is_whole(token) or not 0 <= token < vocab_size:
            raise InvalidRequestError(f"{what} has the token id {token!r}; this model has 0 to {vocab_size - 1}.")
