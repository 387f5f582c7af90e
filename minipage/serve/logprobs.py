"""Log probabilities in OpenAI's two formats, that of texts and that of chats; vLLM's, of prompts, is in output.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minipage.engine.detokenizer import Detokenizer
from minipage.model.tokenizer import Tokenizer
from minipage.output import finite
from minipage.sampling import Logprob
from minipage.trace.recording.vocabulary import token_bytes

Logprobs = Sequence[dict[int, Logprob] | None]  # of each token: itself and the likeliest; None: not known


class Places:
    """Where the tokens of a text begin in it, one after the other.

    Their own texts do not say: three tokens may be one character, and another is left out, or loses its space.
    """

    def __init__(self, tokenizer: Tokenizer | None, skip: bool, before: list[int], begin: int) -> None:
        self._tokenizer = tokenizer
        self._skip = skip
        self._detokenizer = Detokenizer(tokenizer, skip, before)
        self._begin = begin
        self._bytes = b""  # of tokens such as <0xE2>, which the text gets when no more of them come

    def of(self, token_ids: Sequence[int]) -> list[int]:
        """Of the next tokens. One that begins within a character counts as if it began before it."""
        return [self._next(token_id) for token_id in token_ids]

    def _next(self, token_id: int) -> int:
        place = self._begin + len(self._detokenizer.text) + len(self._bytes.decode("utf-8", "ignore"))
        self._detokenizer.add(token_id)
        if self._tokenizer and not self._tokenizer.is_silent(token_id, self._skip):
            is_byte = self._tokenizer.is_byte(token_id)
            self._bytes = self._bytes + token_bytes(self._tokenizer, token_id) if is_byte else b""
        return place


def for_texts(
    token_ids: Sequence[int], logprobs: Logprobs, offsets: list[int], spells_ids: bool = False
) -> dict[str, Any]:
    """/v1/completions; `offsets` is where these tokens begin in the text."""
    texts = [known[token].decoded_token if known else "" for token, known in zip(token_ids, logprobs)]
    return {
        "tokens": [spelled(token, text, spells_ids) for token, text in zip(token_ids, texts)],
        "token_logprobs": [
            finite(known[token].logprob) if known else None for token, known in zip(token_ids, logprobs)
        ],
        "top_logprobs": [by_text(known, spells_ids) if known else None for known in logprobs],
        "text_offset": offsets,
    }


def by_text(known: dict[int, Logprob], spells_ids: bool = False) -> dict[str, float]:
    """Likeliest first. Of several tokens that look alike, such as parts of characters, it is the likeliest."""
    told: dict[str, float] = {}
    for token, each in sorted(known.items(), key=lambda pair: pair[1].rank):
        told.setdefault(spelled(token, each.decoded_token, spells_ids), finite(each.logprob))
    return told


def spelled(token_id: int, text: str, spells_ids: bool) -> str:
    """A token's text; or, if the client wants to know which token it is, vLLM's way to say so."""
    return f"token_id:{token_id}" if spells_ids else text


def for_chats(
    token_ids: Sequence[int], logprobs: Logprobs, num_top: int, tokenizer: Any, spells_ids: bool = False
) -> dict[str, Any]:
    """/v1/chat/completions."""
    content = []
    for token, known in zip(token_ids, logprobs):
        if known:
            top = sorted(known, key=lambda each: known[each].rank)[:num_top]
            told = [chat_token(each, known[each], tokenizer, spells_ids) for each in (token, *top)]
            content.append(told[0] | {"top_logprobs": told[1:]})
    return {"content": content, "refusal": None}


def chat_token(token_id: int, logprob: Logprob, tokenizer: Any, spells_ids: bool) -> dict[str, Any]:
    """A token may be part of a character: then its bytes are no text, but those of all tokens together are."""
    text = logprob.decoded_token
    is_part = "\N{REPLACEMENT CHARACTER}" in text
    said = token_bytes(tokenizer, token_id) if is_part else text.encode("utf-8", "replace")
    return {"token": spelled(token_id, text, spells_ids), "logprob": finite(logprob.logprob), "bytes": list(said)}
