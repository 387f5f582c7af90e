"""Words to token ids and back, with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tokenizers

from minipage.errors import InvalidRequestError, ModelError
from minipage.model.settings import why

if TYPE_CHECKING:
    from minipage.model.chat_template import ChatTemplate

T = TypeVar("T")

LONG = 10_000  # characters; above these, the library's call that lets other threads run meanwhile
LOST = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """The tokenizer of a model, read from its `tokenizer.json`, or made of other files by tokenizer_files.py.

    Raises:
        ModelError: the file cannot be read.
    """

    def __init__(self, source: Path | tokenizers.Tokenizer) -> None:
        backend = read_backend(source) if isinstance(source, Path) else source
        forget_training(backend)
        self.backend = backend
        self._special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._bytes = find_byte_tokens(backend)
        self.chat_template: ChatTemplate | None = None  # how the model wants a conversation

    @property
    def base_vocab_size(self) -> int:
        """One more than the largest token id, without the tokens that were added after training."""
        return max(self.backend.get_vocab(with_added_tokens=False).values(), default=-1) + 1

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a text. A lone surrogate, which is no character, counts as U+FFFD.

        Some models want <s> or the like at the beginning: it is there, unless `add_special_tokens` is off. The text of
        a chat has it already.

        Raises:
            InvalidRequestError: the tokenizer has no way to spell it.
        """
        try:
            text = without_surrogates(text)
            if len(text) < LONG:
                return list(ask(self.backend.encode, text, add_special_tokens=add_special_tokens).ids)
            return list(ask(self.backend.encode_batch, [text], add_special_tokens=add_special_tokens)[0].ids)
        except Exception as error:  # the library raises bare Exceptions
            message = f"the tokenizer cannot read the text ({error}); leave out what it has no token for."
            raise InvalidRequestError(message) from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some tokens. A character whose bytes are not all there comes out as U+FFFD.

        Where the library fails, this is each token's own text, and U+FFFD for those that have none: of tokens that a
        model has generated something has to be said.
        """
        try:
            return self.decode_whole(token_ids, skip_special_tokens)
        except Exception:
            if len(token_ids) == 1:
                return LOST
            return "".join(self.decode([token_id], skip_special_tokens) for token_id in token_ids)

    def decode_whole(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some tokens, or whatever the library raises."""
        return str(ask(self.backend.decode, list(token_ids), skip_special_tokens=skip_special_tokens))

    def rest_of(self, token_ids: list[int], num_characters: int, num_said: int, skip_special_tokens: bool) -> str:
        """What comes after the first characters of a text; `num_said` is how many tokens have said these.

        Where the library fails, what was said stays, and the rest is as good as can be.
        """
        try:
            return self.decode_whole(token_ids, skip_special_tokens)[num_characters:]
        except Exception:
            return self.decode(token_ids[num_said:], skip_special_tokens)

    def end_of(self, token_ids: list[int], skip_special_tokens: bool = False) -> tuple[list[int], str]:
        """The last tokens of a text on which depends what comes next, and what they say: the fewest that say something
        whole, or else eight. A character has at most four bytes; and what is left out of the text separates nothing.
        """
        end: list[int] = []
        text = ""
        for token_id in reversed(token_ids):
            if text.strip(LOST) or len(end) == 8:
                break
            if not self.is_silent(token_id, skip_special_tokens):
                end.insert(0, token_id)
                text = self.decode(end, skip_special_tokens)
        return end, text

    def token_text(self, token_id: int) -> str:
        """What one token adds to a text; empty for an id that the tokenizer does not know.

        With Llama's tokenizers it would lose its space on its own, and look like another token. So it comes twice.
        """
        alone = self.decode([token_id])
        is_part = alone.endswith(LOST)  # of a character
        return alone if is_part else self.decode([token_id, token_id])[len(alone) :] or alone

    def token(self, token_id: int) -> str:
        """A token as the vocabulary spells it; empty for an id that the tokenizer does not know."""
        return self.backend.id_to_token(token_id) or ""

    def is_silent(self, token_id: int, skip_special_tokens: bool) -> bool:
        """Whether it is left out of texts: an unknown id, or a sign for the model, such as the end of text."""
        if skip_special_tokens and token_id in self._special:
            return True
        return self.backend.id_to_token(token_id) is None

    def is_byte(self, token_id: int) -> bool:
        """Whether it is a single byte such as <0xE2>, by which some tokenizers spell what they have no token for."""
        return token_id in self._bytes


def beyond(before: str, text: str) -> tuple[str, str]:
    """(what of `before` is still to come, what comes after it) of a text that begins with it, or with a part of it.

    Where they begin to differ it is over: what was half a character before, U+FFFD, is a whole one in the text.
    """
    places = (i for i, (old, new) in enumerate(zip(before, text)) if old != new)
    same = next(places, min(len(before), len(text)))
    return before[same:] if same == len(text) else "", text[same:]


def ask(call: Callable[..., T], *args: Any, **options: Any) -> T:
    """What the library answers. Where its Rust code panics, that is an error like others, and no reason to stop."""
    try:
        return call(*args, **options)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # it derives from BaseException, and cannot be imported
            raise
        raise RuntimeError(f"the tokenizers library panicked: {error}") from error


def add_ends(backend: tokenizers.Tokenizer, first: str | None, last: str | None) -> None:
    """Let every text begin or end with a token."""
    ends = [token for token in (first, last) if token is not None]
    if ends:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=[*([first] if first is not None else []), "$A", *([last] if last is not None else [])],
            special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(ends)],
        )


def read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        return ask(tokenizers.Tokenizer.from_file, str(path))
    except Exception as error:  # the library raises bare Exceptions
        reason = why(path, error)
        message = f"{path} is not a readable tokenizer ({reason}). Fetch the model's own tokenizer.json again."
        raise ModelError(message) from error


def forget_training(backend: tokenizers.Tokenizer) -> None:
    """Switch off what is of use in training and may have been saved along."""
    backend.no_truncation()  # would cut long prompts
    backend.no_padding()  # would fill up short ones
    if isinstance(backend.model, tokenizers.models.BPE):
        backend.model.dropout = None  # would cut the same text into other tokens each time


def find_byte_tokens(tokenizer: tokenizers.Tokenizer) -> set[int]:
    """The tokens <0x00> to <0xFF>, if the tokenizer takes them for bytes."""
    if tokenizer.decoder is None or b"ByteFallback" not in tokenizer.decoder.__getstate__():
        return set()
    names = [form % byte for byte in range(256) for form in ("<0x%02X>", "<0x%02x>")]
    return {token_id for name in names if (token_id := tokenizer.token_to_id(name)) is not None}


def without_surrogates(text: str) -> str:
    """Lone surrogates, which come of text that was broken elsewhere, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
