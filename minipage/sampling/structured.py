"""Structured output: a text that must match a JSON schema, a regular expression, a grammar, or one of some choices.

    schema    {"type": "object", "properties": {"age": {"type": "integer"}}}
    text      {"age": 4
    allowed   a bit for each token of the vocabulary: 1 for 0 to 9 and }, 0 for nearly all others

After each token some others may follow and most may not. The library llguidance works out which, and all others get the
logit -inf. Where a text stands in its grammar follows from its tokens, so nothing has to be saved when a request is
preempted, and of n samples each goes its own way.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tokenizers

from minipage.errors import InvalidRequestError, shown
from minipage.sampling.param_checks import are_texts, as_plain, as_tuple

if TYPE_CHECKING:
    from llguidance import LLMatcher

Bits = npt.NDArray[np.uint8]  # [ceil(V / 8)], a bit for each token, the lowest bit of a byte first

KINDS = ("json", "regex", "choice", "grammar", "json_object")
END = "<|end of structured output|>"  # what a tokenizer gets that has no token to end a text with
# Between the parts of JSON: a space, or a new line and its indentation. If any number of them were allowed, as in vLLM,
# a model that does not know how to go on would add line breaks for ever.
WHITESPACE = r"[ \t]|\n[ \t]{0,16}"
# `it` is a grammar in which the letters of a special token occur, such as "</s>". Where only one text can follow,
# llguidance allows only the tokens the tokenizer makes of it. Models know these best, but that of "</s>" is no text.
IN_ANY_TOKENS = {"lark_grammar": 'start: @it\n%llguidance {"no_forcing": true}'}
LONGEST = 300  # characters of what llguidance says about a mistake


@dataclass(frozen=True)
class StructuredOutputsParams:
    """What a text has to look like: exactly one of `KINDS`. Names and meanings are those of vLLM's class of this name.

    Raises:
        InvalidRequestError: none is given, or more than one, or a value makes no sense.
    """

    json: str | Mapping[str, Any] | None = None  # a JSON schema; kept as a text
    regex: str | None = None  # in the syntax of Rust's regex, which has no look-around and no references back
    choice: Collection[str] | None = None  # one of these texts
    grammar: str | None = None  # Lark with a rule `start: ...`, or GBNF with `root ::= ...`
    json_object: bool | None = None  # any JSON object
    disable_any_whitespace: bool = False  # in JSON, nothing between its parts
    whitespace_pattern: str | None = None  # in JSON, what may be between its parts; left out: see WHITESPACE

    def __post_init__(self) -> None:
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are" if given else "nothing is"
            raise InvalidRequestError(f"structured_outputs: {what} given; give one of {', '.join(KINDS)}.")
        object.__setattr__(self, "json", as_json(self.json))
        object.__setattr__(self, "choice", as_tuple(self.choice))
        rules = {
            "json": (is_text(self.json), "a JSON schema, as a dict or a text"),
            "regex": (is_text(self.regex), "a text"),
            "choice": (self.choice is None or (are_texts(self.choice) and self.choice), "texts, at least one"),
            "grammar": (is_text(self.grammar), "a text"),
            "json_object": (as_plain(self.json_object) in (None, True), "True, or left out"),
            "whitespace_pattern": (is_text(self.whitespace_pattern), "a regular expression"),
            "disable_any_whitespace": (isinstance(self.disable_any_whitespace, bool), "True or False"),
        }
        for name, (is_valid, allowed) in rules.items():
            if not is_valid:
                value = shown(getattr(self, name))
                raise InvalidRequestError(f"structured_outputs: {name} is {value}; it must be {allowed}.")


def is_structure(value: Any) -> bool:
    return isinstance(value, StructuredOutputsParams)


def is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def as_json(schema: Any) -> Any:
    """A mapping as a text, which nobody can change afterwards; what is no JSON stays as it is."""
    try:
        return json.dumps(dict(schema)) if isinstance(schema, Mapping) else schema
    except (TypeError, ValueError, RecursionError):
        return schema


class Grammar:
    """Where one text stands in what it has to look like."""

    def __init__(self, matcher: LLMatcher, known: Bits) -> None:
        self._matcher = matcher
        self._known = known  # the tokens that model and tokenizer have in common

    def copy(self, ahead: Collection[int] = ()) -> Grammar:
        """Another one, which stands behind these further tokens."""
        grammar = Grammar(self._matcher.deep_copy(), self._known)
        for token_id in ahead:
            grammar.advance(token_id)
        return grammar

    def advance(self, token_id: int) -> None:
        """The text goes on with this token."""
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token_id)

    def allowed(self) -> Bits:
        """The tokens that may come next; none, if llguidance has given up."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)[: len(self._known)]  # [ceil(V / 8)]
        return np.zeros_like(bits) if self._matcher.is_error() else bits & self._known

    @property
    def is_complete(self) -> bool:
        """Whether nothing can be added any more."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> str:
        """Why llguidance has given up; empty if it has not."""
        return shorten(self._matcher.get_error())


class GrammarCompiler:
    """Compiles grammars for one model.

    Args:
        tokenizer: the model's, as the text of a tokenizer.json.
        vocab_size: V, of the model, which may have more tokens than its tokenizer, or fewer.
        eos_token_ids: tokens that end a text; there may be none.

    Raises:
        InvalidRequestError: llguidance is not installed, or does not know what to make of this tokenizer.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        try:
            import llguidance
        except ImportError as error:
            message = "structured_outputs needs the library llguidance: pip install 'minipage[structured]'."
            raise InvalidRequestError(message) from error
        self._llguidance: Any = llguidance
        backend = tokenizers.Tokenizer.from_str(tokenizer)
        num_tokens = max(backend.get_vocab().values(), default=-1) + 1
        size = max(vocab_size, num_tokens + 1)
        ends = sorted(token for token in eos_token_ids if token < num_tokens)
        if not ends:  # llguidance cannot do without; the model will never be allowed to say it
            backend.add_special_tokens([END])
            ends = [backend.get_vocab()[END]]
        try:
            self._tokenizer = llguidance.LLTokenizer(backend.to_str(), n_vocab=size, eos_token=ends)
        except ValueError as error:
            message = f"structured_outputs cannot be had with this model's tokenizer ({shorten(str(error))})."
            raise InvalidRequestError(message) from error
        added = backend.get_added_tokens_decoder().items()
        self._special = [letters(token.content) for i, token in added if self._tokenizer.is_special_token(i)]
        self._known: Bits = np.packbits(np.arange(vocab_size) < num_tokens, bitorder="little")  # [ceil(V / 8)]
        self.compile = lru_cache(100)(self._compile)  # usually a program asks for the same again and again

    def _compile(self, wanted: StructuredOutputsParams) -> Grammar:
        """The beginning of a text. Raises InvalidRequestError if llguidance cannot compile it."""
        limits = self._llguidance.LLParserLimits(verbose_errors=False)
        try:
            source = self._source(wanted)
            if any(map(letters(source).count, self._special)):
                source = json.dumps({"grammars": [IN_ANY_TOKENS, json.loads(source)["grammars"][0] | {"name": "it"}]})
            matcher = self._llguidance.LLMatcher(self._tokenizer, source, log_level=0, limits=limits)
            problem = matcher.get_error()
        except Exception as error:
            problem = str(error) or type(error).__name__
        if problem:
            [kind] = (name for name in KINDS if getattr(wanted, name) is not None)
            raise InvalidRequestError(f"structured_outputs: {kind} cannot be compiled: {shorten(problem)}")
        return Grammar(matcher, self._known)

    def _source(self, wanted: StructuredOutputsParams) -> str:
        """The grammar in llguidance's own form, a text in JSON."""
        matcher = self._llguidance.LLMatcher
        if wanted.regex is not None:
            return str(matcher.grammar_from_regex(wanted.regex))
        if wanted.choice is not None:
            one = " | ".join(map(json.dumps, wanted.choice))  # as a token of the grammar: there may be any number
            return json.dumps({"grammars": [{"lark_grammar": f"start: CHOICE\nCHOICE: {one}"}]})
        if wanted.grammar is not None:
            kind = "gbnf" if "::=" in wanted.grammar else "lark"
            return json.dumps({"grammars": [{"lark_grammar": self._llguidance.grammar_from(kind, wanted.grammar)}]})
        pattern = wanted.whitespace_pattern or WHITESPACE
        options = {"whitespace_flexible": False} if wanted.disable_any_whitespace else {"whitespace_pattern": pattern}
        schema = '{"type": "object"}' if wanted.json is None else wanted.json
        return str(matcher.grammar_from_json_schema(schema, defaults=options))


def letters(text: str) -> str:
    """What is equal of a text however JSON, a regular expression or a grammar have escaped it."""
    return json.dumps(text)[1:-1].replace("\\", "")


def shorten(text: str) -> str:
    """A message of llguidance's in one line."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
