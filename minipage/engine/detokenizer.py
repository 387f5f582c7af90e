"""Text that grows token by token: what may be shown of it, and what is held back until it is whole."""

from __future__ import annotations

from tokenizers.decoders import DecodeStream

from minipage.model.tokenizer import Tokenizer, ask, beyond


class Detokenizer:
    """The text of a growing list of tokens: `text` only grows, and after `flush` it is that of all of them together.

    Tokens are decoded when somebody asks for the text. Who wants it at the end only gets it all at once, which takes a
    fraction of the time.

    What a token says may depend on its neighbours: characters are split over tokens, and spaces, kept or dropped.
    DecodeStream knows of that, and takes time only for the last few tokens. Left to us are what it would hold back for
    ever, and three kinds of tokens:

        nothing to say   unknown ids, and special tokens where they are skipped: the stream never gets them
        bytes, <0xE2>    a run of these is text only as a whole, so the stream gets it as one
        broken text      the stream looks at all of it again with each token that mends nothing, so it is given several
                         tokens at once, the more the longer that lasts

    Args:
        before: the tokens before the first one, if there are any: what they say is no part of this text. Without them
            the first word would lose its space with Llama's tokenizers, as if it began the text. If they end with half
            a character, and the first ones are the other half, then the text begins with all of it.
    """

    def __init__(self, tokenizer: Tokenizer | None, skip: bool = False, before: list[int] | None = None) -> None:
        self._text = ""  # stays empty when there is no tokenizer
        self._tokenizer = tokenizer
        self._skip = skip  # special tokens
        self._stream = DecodeStream(skip_special_tokens=skip)
        self._token_ids, self._before = tokenizer.end_of(before or [], skip) if tokenizer else ([], "")
        self._num_characters = 0  # that the stream has said, those of `before` among them
        self._num_read = 0  # of the tokens
        self._waiting: list[int] = []  # the last of these, which the stream has not got yet
        self._num_silent = 0  # tokens that it got and has said nothing of
        self._num_said = 0  # tokens whose text is in `text`

    def add(self, token_id: int) -> None:
        self._token_ids.append(token_id)

    @property
    def text(self) -> str:
        for token_id in self._token_ids[self._num_read :]:
            self._num_read += 1
            self._read(token_id)
        return self._text

    def _read(self, token_id: int) -> None:
        if self._tokenizer is None or self._tokenizer.is_silent(token_id, self._skip):
            return
        self._waiting.append(token_id)
        if self._tokenizer.is_byte(token_id) or len(self._waiting) <= self._num_silent // 8:
            return
        try:
            text = ask(self._stream.step, self._tokenizer.backend, self._waiting) or ""
        except Exception:  # the decoder takes back what it has said: `flush` will have it right
            text = ""
        self._num_silent = 0 if text else self._num_silent + len(self._waiting)
        self._num_said = self._num_read if text else self._num_said
        self._waiting = []
        self._say(text)

    def _say(self, text: str) -> None:
        """What comes first is what `before` says, and left out."""
        self._num_characters += len(text)
        self._before, new = beyond(self._before, text)
        said, self._text = self._text, ""  # a string that nobody else has can grow in its place
        said += new
        self._text = said

    def flush(self) -> None:
        """No more tokens will come: what is held back is taken as it is."""
        if self._tokenizer:
            self._say(self._tokenizer.rest_of(self._token_ids, self._num_characters, self._num_said, self._skip))
        self._num_read = self._num_said = len(self._token_ids)
