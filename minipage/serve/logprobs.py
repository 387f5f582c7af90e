"""Log probabilities in OpenAI's two formats, that of texts and that of chats; and in vLLM's, of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minipage.sampling import Logprob
from minipage.trace.recording.vocabulary import token_bytes

LOWEST = -9999.0  # in place of minus infinity, for which JSON has no number; as in vLLM
Logprobs = Sequence[dict[int, Logprob] | None]  # of each token: itself and the likeliest; None: not known


def for_texts(token_ids: Sequence[int], logprobs: Logprobs, offset: int) -> dict[str, Any]:
    """/v1/completions; `offset` is where the first of these tokens begins in the text."""
    tokens = [text_of(token, known) for token, known in zip(token_ids, logprobs)]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [finite(known[token]) if known else None for token, known in zip(token_ids, logprobs)],
        "top_logprobs": [
            {each.decoded_token: finite(each) for each in known.values()} if known else None for known in logprobs
        ],
        "text_offset": offsets,
    }


def for_chats(token_ids: Sequence[int], logprobs: Logprobs, num_top: int, tokenizer: Any) -> dict[str, Any]:
    """/v1/chat/completions."""
    content = []
    for token, known in zip(token_ids, logprobs):
        if known:
            top = sorted(known, key=lambda each: known[each].rank)[:num_top]
            likeliest = [chat_token(each, known[each], tokenizer) for each in top]
            content.append(chat_token(token, known[token], tokenizer) | {"top_logprobs": likeliest})
    return {"content": content, "refusal": None}


def of_prompts(logprobs: Logprobs) -> list[dict[int, dict[str, Any]] | None]:
    """What `prompt_logprobs` asks for, in vLLM's format: for each token, itself and the likeliest by their ids."""
    return [
        {token: each._asdict() | {"logprob": finite(each)} for token, each in known.items()} if known else None
        for known in logprobs
    ]


def chat_token(token_id: int, logprob: Logprob, tokenizer: Any) -> dict[str, Any]:
    """A token may be part of a character: then its bytes are no text, but those of all tokens together are."""
    text = logprob.decoded_token
    is_part = "\N{REPLACEMENT CHARACTER}" in text
    said = token_bytes(tokenizer, token_id) if is_part else text.encode("utf-8", "replace")
    return {"token": text, "logprob": finite(logprob), "bytes": list(said)}


def finite(logprob: Logprob) -> float:
    return max(logprob.logprob, LOWEST)


def text_of(token_id: int, known: dict[int, Logprob] | None) -> str:
    return known[token_id].decoded_token if known else ""
