"""The tokens of a request's prompt, for the router. Whatever cannot be read here is the replica's to refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from minipage.serve import chat, completions
from minipage.serve.chat import Render
from minipage.serve.errors import ApiError, read_model
from minipage.serve.protocol import ChatBody, CompletionBody

MOST_CHARACTERS = 100_000  # of a prompt: enough to choose a replica by


class Beginning(NamedTuple):
    """By what a request is given to a replica."""

    token_ids: Sequence[int] = ()
    salt: str = ""


class PromptReader:
    """Cuts prompts into tokens as the replicas do.

    Args:
        tokenizer: the model's, or None.
        template: for chats, in place of the model's own.
    """

    def __init__(self, tokenizer: Any, template: Render | None = None) -> None:
        own = getattr(tokenizer, "chat_template", None)
        self.tokenizer = tokenizer
        self.template = template or (own.render if own else None)

    def read(self, path: str, raw: bytes) -> Beginning:
        """Of several prompts, the first. Nothing, if this is no request for a text."""
        try:
            if path == "/v1/completions":
                return self._completion(read_model(CompletionBody, raw))
            if path == "/v1/chat/completions":
                return self._chat(read_model(ChatBody, raw))
        except ApiError:
            pass
        return Beginning()

    def _completion(self, body: CompletionBody) -> Beginning:
        prompt = completions.read_prompts(body.prompt)[0]
        if isinstance(prompt, str):
            prompt = self._encode(prompt, body.add_special_tokens is not False)
        return Beginning(prompt, body.cache_salt or "")  # type: ignore[arg-type]

    def _chat(self, body: ChatBody) -> Beginning:
        text = chat.render(self.template, body.messages, chat.template_options(body))
        return Beginning(self._encode(text, bool(body.add_special_tokens)), body.cache_salt or "")

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self.tokenizer.encode(text[:MOST_CHARACTERS], add_special_tokens)) if self.tokenizer else []
