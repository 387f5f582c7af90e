"""Words to token ids and back, with the `tokenizers` library, and text that grows token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from minipage.errors import ModelError


class Tokenizer:
    """The tokenizer of a model, read from its `tokenizer.json`.

    Raises:
        ModelError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            message = f"{path} is not a readable tokenizer ({error}). Fetch the model's own tokenizer.json again."
            raise ModelError(message) from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of some tokens. A character whose bytes are not all there comes out as U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """The text of one token on its own; empty for an id that the tokenizer does not know."""
        return self.decode([token_id])

    def token(self, token_id: int) -> str:
        """A token as the vocabulary spells it; empty for an id that the tokenizer does not know."""
        return self._tokenizer.id_to_token(token_id) or ""


class Detokenizer:
    """The text of a growing list of tokens, without decoding the beginning again and again.

    A token may end in the middle of a character (GPT-2's tokens are made of bytes, and a character has up to four), so
    the last few tokens are held back until they make whole characters.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._held_back: list[int] = []
        self.text = ""  # stays empty when there is no tokenizer

    def add(self, token_id: int) -> None:
        if self._tokenizer is None:
            return
        self._held_back.append(token_id)
        held = self._held_back
        text = self._tokenizer.decode(held)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._take(len(held))
        elif len(held) > 3:  # more than a character can lack: these begin with bytes that are no character at all
            splits = (n for n in range(len(held) - 1, 0, -1) if self._halves(n) == text)
            self._take(next(splits, 0))

    def flush(self) -> None:
        """Take what is held back as it is: no more tokens will come."""
        self._take(len(self._held_back))

    def _take(self, num_tokens: int) -> None:
        if self._tokenizer is not None and num_tokens:
            self.text += self._tokenizer.decode(self._held_back[:num_tokens])
            del self._held_back[:num_tokens]

    def _halves(self, num_tokens: int) -> str:
        """The text of what is held back, decoded in two parts: another one if a character lies across them."""
        if self._tokenizer is None:
            return ""
        first, second = self._held_back[:num_tokens], self._held_back[num_tokens:]
        return self._tokenizer.decode(first) + self._tokenizer.decode(second)
