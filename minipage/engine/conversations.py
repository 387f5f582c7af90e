"""Conversations: lists of messages, of which the model's chat template makes prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from minipage.engine.prompts import Prompt
from minipage.errors import InvalidRequestError, shown
from minipage.model.tokenizer import Tokenizer

Conversation: TypeAlias = Sequence[Mapping[str, Any]]  # messages, such as {"role": "user", "content": "Hello"}


def chat_prompts(
    messages: Conversation | Sequence[Conversation],
    tokenizer: Tokenizer | None,
    add_generation_prompt: bool = True,
    values: Mapping[str, Any] | None = None,
) -> list[Prompt]:
    """One conversation or many -> a prompt for each, as the model's chat template has it.

    `values` are for the template. Raises InvalidRequestError if the model has none, or for messages it cannot take.
    """
    values = {} if values is None else values
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise InvalidRequestError(f"chat_template_kwargs is {shown(values)}; it must be a dict of names and values.")
    given: dict[str, Any] = {"add_generation_prompt": add_generation_prompt} | dict(values)
    if taken := {"self", "messages"} & given.keys():
        raise InvalidRequestError(f"chat_template_kwargs has {min(taken)!r}, which is no name for a value; drop it.")
    if tokenizer is None or tokenizer.chat_template is None:
        lacking = "tokenizer" if tokenizer is None else "chat template"
        raise InvalidRequestError(
            f"this model has no {lacking}, so it cannot chat. Choose a model that was trained to, such as smollm2, or "
            "let this one continue a text with generate()."
        )
    is_many = is_sequence(messages) and len(messages) > 0 and is_sequence(messages[0])
    conversations: Sequence[Any] = messages if is_many else [messages]
    prompts: list[Prompt] = []
    for number, conversation in enumerate(conversations):
        try:
            text = tokenizer.chat_template.render(conversation, **given)
        except InvalidRequestError as error:
            where = f"conversation {number} of {len(conversations)} (counted from 0): " if is_many else ""
            raise InvalidRequestError(f"{where}{error}") from error
        # The template has written what the text begins with.
        prompts.append({"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)})
    return prompts


def is_sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
