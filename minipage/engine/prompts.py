"""What users hand in: one prompt or many, as text or as token ids, checked before anything is queued.

A prompt is a text; or token ids: a list, a NumPy array, a PyTorch tensor, an iterator, ...; or, as in vLLM, a dict
{"prompt": text} or {"prompt_token_ids": ids}. With both, the ids are what counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from minipage.errors import InvalidRequestError, shown
from minipage.model.tokenizer import Tokenizer, without_surrogates
from minipage.sampling.param_checks import as_plain, check_token_ids, is_whole

Prompt: TypeAlias = str | Iterable[int] | Mapping[str, Any]

KEYS = ("prompt", "prompt_token_ids")  # of a prompt that is a dict


def list_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """One prompt or many -> a list of prompts. A list that begins with a number is one prompt of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if getattr(prompts, "ndim", 1) == 2:  # an array, with a prompt in each row
        return list(as_plain(prompts))
    items = members(prompts)
    return [items] if items and is_whole(items[0]) else items


def read_prompt(prompt: Prompt, tokenizer: Tokenizer | None, vocab_size: int) -> tuple[str | None, list[int]]:
    """(its text, if there is one; its tokens), or an InvalidRequestError that says why it cannot be served."""
    text, token_ids = text_and_ids(prompt)
    if token_ids is None:
        if tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer.json; give the prompt as a list of token ids.")
        token_ids = tokenizer.encode(text or "")
        if text and not token_ids:
            raise InvalidRequestError(f"the prompt {shown(text)} has no character known to the tokenizer; use others.")
    check_token_ids(token_ids, vocab_size, "the prompt")
    if len(token_ids) == 0:
        raise InvalidRequestError("the prompt is empty; give at least one token.")
    return text, [int(token) for token in token_ids]


def text_and_ids(prompt: Prompt) -> tuple[str | None, list[Any] | None]:
    """What a prompt has of the two; at least one."""
    if isinstance(prompt, str):
        return without_surrogates(prompt), None
    if not isinstance(prompt, Mapping):
        return None, members(prompt)
    given = {key: value for key, value in prompt.items() if value is not None}
    if unknown := [key for key in given if key not in KEYS]:
        key = shown(unknown[0])
        raise InvalidRequestError(f"a prompt has the key {key}; known are {' and '.join(map(repr, KEYS))}.")
    if not given:
        raise InvalidRequestError("a prompt is an empty dict; give it a 'prompt' or 'prompt_token_ids'.")
    text, token_ids = (given.get(key) for key in KEYS)
    if text is not None and not isinstance(text, str):
        raise InvalidRequestError(f"the 'prompt' of a dict is {shown(text)}; it must be a text.")
    return text and without_surrogates(text), None if token_ids is None else members(token_ids)


def members(values: Any) -> list[Any]:
    """What a list, an array, an iterator, ... holds; InvalidRequestError for what only looks like one."""
    if isinstance(values, bytes | bytearray | memoryview):
        raise InvalidRequestError(f"{shown(values)} is bytes, which may be any text; decode it first.")
    if isinstance(values, set | frozenset):
        raise InvalidRequestError(f"{shown(values)} is a set, which has no order; give a list.")
    if getattr(values, "ndim", 1) != 1:
        raise InvalidRequestError(f"an array has {values.ndim} dimensions; token ids have 1. Give each prompt a list.")
    if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
        raise InvalidRequestError(f"{shown(values)} is no prompt; give a text, token ids, or a list of either.")
    return [as_plain(value) if getattr(value, "ndim", 1) == 0 else value for value in as_plain(values)]
