"""One request on its way through the engine, and what the user gets to see of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from minipage.model.tokenizer import Detokenizer, Tokenizer
from minipage.sampling import Logprob, SamplingParams
from minipage.scheduling import Sequence, Status


@dataclass(frozen=True)
class CompletionOutput:
    """One generated text."""

    index: int  # which of the request's texts; always 0 so far
    text: str  # without the prompt; empty if the model has no tokenizer
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None  # for each token: itself and the most likely ones, if asked for
    cumulative_logprob: float | None  # of all tokens together, if logprobs were asked for
    finish_reason: str | None  # "stop", "length" or "abort"; None: still going on
    stop_reason: int | str | None  # the stop token or stop string that ended it


@dataclass(frozen=True)
class RequestMetrics:
    """When things happened, in seconds on the clock of time.perf_counter()."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None
    num_preemptions: int = 0


@dataclass(frozen=True)
class RequestOutput:
    """What is known of a request so far; nothing in it changes later."""

    request_id: str
    prompt: str | None  # None: it was given as token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics


class Request:
    """A request's sequence, its text so far, and the rule that ends it."""

    def __init__(
        self,
        prompt: str | None,
        params: SamplingParams,
        seq: Sequence,
        tokenizer: Tokenizer | None,
        eos_token_ids: frozenset[int],
        rng: np.random.Generator,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.seq = seq
        self.rng = rng
        self.stop_token_ids = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else eos_token_ids)
        self.metrics = RequestMetrics(arrival_time=time.perf_counter())
        self.finish_reason: str | None = None
        self._stop_reason: int | str | None = None
        self._detokenizer = Detokenizer(tokenizer)
        self._text_end: int | None = None  # where the text is cut off, if a stop string ended it
        self._logprobs: list[dict[int, Logprob]] = []

    @property
    def request_id(self) -> str:
        return self.seq.seq_id

    @property
    def forbidden_tokens(self) -> frozenset[int]:
        """Tokens that must not come next: those that would end the text before min_tokens."""
        return self.stop_token_ids if len(self.seq.output_token_ids) < self.params.min_tokens else frozenset()

    def started(self) -> None:
        """It is scheduled; only the first time counts."""
        if self.metrics.first_scheduled_time is None:
            self.metrics = replace(self.metrics, first_scheduled_time=time.perf_counter())

    def add_token(self, token_id: int, logprobs: dict[int, Logprob] | None) -> None:
        """Take the next token, and finish if it is the last."""
        if self.metrics.first_token_time is None:
            self.metrics = replace(self.metrics, first_token_time=time.perf_counter())
        self.seq.token_ids.append(token_id)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        old_length = len(self._detokenizer.text)
        self._detokenizer.add(token_id)
        if len(self.seq.output_token_ids) >= self.params.min_tokens:
            self._look_for_stop(token_id, old_length)
        if self._stop_reason is not None:
            self.finish("stop")
        elif len(self.seq.token_ids) >= self.seq.max_num_tokens:
            self.finish("length")

    def finish(self, reason: str) -> None:
        """Nothing more will come: "stop", "length" or "abort"."""
        self.finish_reason = reason
        self.seq.status = Status.FINISHED
        self.metrics = replace(self.metrics, finished_time=time.perf_counter())
        self._detokenizer.flush()

    def output(self) -> RequestOutput:
        """What the user may see now."""
        token_ids = self.seq.output_token_ids
        logprobs = None if self.params.logprobs is None else self._logprobs.copy()
        completion = CompletionOutput(
            index=0,
            text=self._visible_text(),
            token_ids=token_ids,
            logprobs=logprobs,
            cumulative_logprob=None if logprobs is None else sum(p[t].logprob for p, t in zip(logprobs, token_ids)),
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.seq.token_ids[: self.seq.num_prompt_tokens],
            outputs=[completion],
            finished=self.finish_reason is not None,
            metrics=replace(self.metrics, num_preemptions=self.seq.num_preemptions),
        )

    def _look_for_stop(self, token_id: int, old_length: int) -> None:
        """Whether the new token is a stop token, or completes a stop string in the text of `old_length` characters."""
        if token_id in self.stop_token_ids:
            self._stop_reason = token_id
            return
        text = self._detokenizer.text
        for stop in self.params.stop_strings:
            place = text.find(stop, max(0, old_length - len(stop) + 1))
            if place >= 0 and (self._text_end is None or place < self._text_end):
                self._text_end, self._stop_reason = place, stop

    def _visible_text(self) -> str:
        """The text up to the stop string. While it may still turn out to begin with one, the end is held back."""
        text = self._detokenizer.text
        if self.finish_reason is not None:
            return text[: self._text_end]
        longest = max((len(stop) for stop in self.params.stop_strings), default=1)
        return text[: max(0, len(text) - (longest - 1))]
