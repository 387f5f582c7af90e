"""One generated text as the user sees it: decoded, and finished for a reason.

A text ends with a stop token (its own, or the model's), a stop string (stop_strings.py), the end of what its grammar
allows, or its length.
"""

from __future__ import annotations

from dataclasses import dataclass

from minipage.engine.detokenizer import Detokenizer
from minipage.engine.stop_strings import StopStrings
from minipage.model.tokenizer import Tokenizer, without_surrogates
from minipage.sampling import Grammar, Logprob, SamplingParams
from minipage.scheduling import Sequence


@dataclass(frozen=True)
class CompletionOutput:
    """One generated text."""

    index: int  # which of the request's texts
    text: str  # without the prompt, its end and special tokens; empty if the model has no tokenizer
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None  # for each token: itself and the most likely ones, if asked for
    cumulative_logprob: float | None  # of all tokens together, if logprobs were asked for, or of a beam
    finish_reason: str | None  # "stop", "length", "abort" or "error"; None: still going on
    stop_reason: int | str | None  # a stop token or stop string of the request; a beam's end; None: anything else
    score: float | None = None  # of a beam: cumulative_logprob / length ** length_penalty


@dataclass(eq=False, repr=False)
class Completion:
    """The text of one sampled sequence so far, and the rule that ends it."""

    index: int
    seq: Sequence
    params: SamplingParams
    stop_token_ids: frozenset[int]
    max_num_tokens: int
    tokenizer: Tokenizer | None
    grammar_at_first: Grammar | None = None  # what the text has to look like, before its first token

    def __post_init__(self) -> None:
        self._logprobs: list[dict[int, Logprob]] = []
        self._cumulative = [0.0]  # log probability of the first n tokens together
        self._begin()

    def add_token(self, token_id: int, logprobs: dict[int, Logprob] | None) -> None:
        """Take the next token, and finish if it is the last."""
        if logprobs is not None:
            n = self.seq.num_output_tokens  # if there is more: of a token that was lost when a step failed
            self._logprobs[n:] = [logprobs]
            self._cumulative[n + 1 :] = [self._cumulative[n] + logprobs[token_id].logprob]
        self.seq.token_ids.append(token_id)  # from here on it counts, and all else follows from it
        self._see(token_id)

    def grammar_after(self, ahead: list[int]) -> Grammar | None:
        """What the text has to look like after these further tokens."""
        return self.grammar.copy(ahead) if self.grammar and ahead else self.grammar

    def restore(self) -> None:
        """Something failed half way: work out text and finish reason anew, from the tokens that count."""
        self.seq.finished = False
        self._begin()
        for token_id in self.seq.output_token_ids:
            self._see(token_id)

    def _begin(self) -> None:
        """As it is before the first token."""
        self.finish_reason: str | None = None
        self.grammar = self.grammar_at_first and self.grammar_at_first.copy()  # after the tokens seen
        prompt = self.seq.token_ids[: self.seq.num_prompt_tokens]
        self._detokenizer = Detokenizer(self.tokenizer, self.params.skip_special_tokens, prompt)
        self._num_seen = 0  # tokens that text and finish reason take account of
        strings = tuple(map(without_surrogates, self.params.stop_strings))
        self._stop_strings = StopStrings(strings, self.params.include_stop_str_in_output)
        self._stop_reason: int | str | None = None

    def _see(self, token_id: int) -> None:
        """Take account of one more token: what it adds to the text, and whether it ends it."""
        self._num_seen += 1
        if self.grammar:
            self.grammar.advance(token_id)
        is_stop_token = token_id in self.stop_token_ids and self._num_seen >= self.params.min_tokens
        if not is_stop_token or self.params.include_stop_str_in_output:
            self._detokenizer.add(token_id)
        if self._stop_strings.strings:
            self._look_for_stop_strings()
        if is_stop_token and self._stop_reason is None and token_id in (self.params.stop_token_ids or ()):
            self._stop_reason = token_id  # the request named it; the model's own end is no stop_reason
        if is_stop_token or self._stop_reason is not None or (self.grammar and self.grammar.is_complete):
            self.finish("stop")
        elif self.seq.num_prompt_tokens + self._num_seen >= self.max_num_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """Nothing more will come: "stop", "length", "abort" or "error"."""
        self._detokenizer.flush()
        self._look_for_stop_strings()  # in what was held back until now
        self.finish_reason = "stop" if self._stop_strings.found and reason == "length" else reason
        self.seq.finished = True

    def output(self) -> CompletionOutput:
        """What the user may see now."""
        token_ids = self.seq.output_token_ids
        logprobs = None if self.params.logprobs is None else self._logprobs[: len(token_ids)]
        together = None if logprobs is None else self._cumulative[len(token_ids)]
        text, reasons = self._detokenizer.text, (self.finish_reason, self._stop_reason)
        text = self._stop_strings.visible(text) if self.finish_reason is None else text[: self._stop_strings.end]
        return CompletionOutput(self.index, text, token_ids, logprobs, together, *reasons)

    def _look_for_stop_strings(self) -> None:
        self._stop_strings.look(self._detokenizer.text, self._num_seen > self.params.min_tokens)
        self._stop_reason = self._stop_strings.found or self._stop_reason
