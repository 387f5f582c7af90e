"""One generated text as the user sees it: decoded, watched for stop strings, finished for a reason."""

from __future__ import annotations

from dataclasses import dataclass

from minipage.model.tokenizer import Detokenizer, Tokenizer
from minipage.sampling import Logprob, SamplingParams
from minipage.scheduling import Sequence


@dataclass(frozen=True)
class CompletionOutput:
    """One generated text."""

    index: int  # which of the request's texts
    text: str  # without the prompt; empty if the model has no tokenizer
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None  # for each token: itself and the most likely ones, if asked for
    cumulative_logprob: float | None  # of all tokens together, if logprobs were asked for, or of a beam
    finish_reason: str | None  # "stop", "length", "abort" or "error"; None: still going on
    stop_reason: int | str | None  # the stop token or stop string that ended it
    score: float | None = None  # of a beam: cumulative_logprob / length ** length_penalty


class Completion:
    """The text of one sampled sequence so far, and the rule that ends it."""

    def __init__(
        self,
        index: int,
        seq: Sequence,
        params: SamplingParams,
        stop_token_ids: frozenset[int],
        max_num_tokens: int,
        tokenizer: Tokenizer | None,
    ) -> None:
        self.index = index
        self.seq = seq
        self.finish_reason: str | None = None
        self._params = params
        self._stop_token_ids = stop_token_ids
        self._max_num_tokens = max_num_tokens
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._num_seen = 0  # tokens whose text is known
        self._logprobs: list[dict[int, Logprob]] = []
        self._text_end: int | None = None  # where the text is cut off, if a stop string ended it
        self._stop_reason: int | str | None = None

    @property
    def forbidden_tokens(self) -> frozenset[int]:
        """Tokens that must not come next: those that would end the text before min_tokens."""
        too_short = self.seq.num_output_tokens < self._params.min_tokens
        return self._stop_token_ids if too_short else frozenset()

    def add_token(self, token_id: int, logprobs: dict[int, Logprob] | None) -> None:
        """Take the next token, and finish if it is the last."""
        del self._logprobs[self.seq.num_output_tokens :]  # of a token that did not come to count
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self.seq.token_ids.append(token_id)  # from here on it counts, and all else follows from it
        self._follow()

    def _follow(self) -> None:
        """Take note of the tokens that have not been looked at yet."""
        for token_id in self.seq.output_token_ids[self._num_seen :]:
            self._see(token_id)
            self._num_seen += 1

    def restore(self) -> None:
        """Something failed half way: work out text and finish reason anew, from the tokens that count."""
        self.finish_reason, self.seq.finished = None, False
        self._detokenizer, self._num_seen = Detokenizer(self._tokenizer), 0
        self._text_end, self._stop_reason = None, None
        self._follow()

    def _see(self, token_id: int) -> None:
        num_tokens = self._num_seen + 1  # generated so far
        old_length = len(self._detokenizer.text)
        self._detokenizer.add(token_id)
        if num_tokens >= self._params.min_tokens:
            self._look_for_stop(token_id, old_length)
        if self._stop_reason is not None:
            self.finish("stop")
        elif self.seq.num_prompt_tokens + num_tokens >= self._max_num_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """Nothing more will come: "stop", "length", "abort" or "error"."""
        self.finish_reason = reason
        self.seq.finished = True
        self._detokenizer.flush()

    def output(self) -> CompletionOutput:
        """What the user may see now."""
        token_ids = self.seq.output_token_ids
        logprobs = None if self._params.logprobs is None else self._logprobs[: len(token_ids)]
        return CompletionOutput(
            index=self.index,
            text=self._visible_text(),
            token_ids=token_ids,
            logprobs=logprobs,
            cumulative_logprob=None if logprobs is None else sum(p[t].logprob for p, t in zip(logprobs, token_ids)),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )

    def _look_for_stop(self, token_id: int, old_length: int) -> None:
        """Whether the new token is a stop token, or completes a stop string in the text of `old_length` characters."""
        if token_id in self._stop_token_ids:
            self._stop_reason = token_id
            return
        text = self._detokenizer.text
        for stop in self._params.stop_strings:
            place = text.find(stop, max(0, old_length - len(stop) + 1))
            if place >= 0 and (self._text_end is None or place < self._text_end):
                self._text_end, self._stop_reason = place, stop

    def _visible_text(self) -> str:
        """The text up to the stop string. While it may still turn out to begin with one, the end is held back."""
        text = self._detokenizer.text
        if self.finish_reason is not None:
            return text[: self._text_end]
        longest = max((len(stop) for stop in self._params.stop_strings), default=1)
        return text[: max(0, len(text) - (longest - 1))]
