"""One request on its way through the engine: its texts, and what the user gets to see of them.

A request of `n` samples has a Completion for each. A beam search has beams instead: sequences that come and go, until
the best texts are known.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import numpy as np

from minipage.beam_search import BeamSearch
from minipage.completion import Completion, CompletionOutput
from minipage.model.tokenizer import Tokenizer
from minipage.sampling import Logprob, SamplingParams, log_softmax, random_number, sample, top_logprobs
from minipage.scheduling import Sequence, SequenceGroup


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


class NextToken(NamedTuple):
    """A token for one sequence. Of a beam there may be several, or none: then it branches, or dies."""

    seq: Sequence
    token_id: int
    logprobs: dict[int, Logprob] | None  # if the request asked for them


class Request:
    """What both kinds have in common."""

    def __init__(
        self, prompt: str | None, params: SamplingParams, group: SequenceGroup, stop_token_ids: frozenset[int]
    ):
        self.prompt = prompt
        self.params = params
        self.group = group
        self.stop_token_ids = stop_token_ids
        self.prompt_token_ids = group.leader.token_ids.copy()
        self.metrics = RequestMetrics(arrival_time=time.perf_counter())

    @property
    def request_id(self) -> str:
        return self.group.group_id

    @property
    def finished(self) -> bool:
        return self.metrics.finished_time is not None

    def started(self) -> None:
        """It is scheduled; only the first time counts."""
        if self.metrics.first_scheduled_time is None:
            self.metrics = replace(self.metrics, first_scheduled_time=time.perf_counter())

    def choose(self, logits: list[tuple[Sequence, np.ndarray]]) -> list[NextToken]:
        """The next tokens, from a row of logits [V] for each sequence that has come to its end."""
        raise NotImplementedError

    def take(self, tokens: list[NextToken]) -> list[Sequence]:
        """Let the sequences have their tokens; returns those that are done with their blocks."""
        raise NotImplementedError

    def completions(self) -> list[CompletionOutput]:
        raise NotImplementedError

    def abort(self) -> None:
        self._finish()

    def output(self) -> RequestOutput:
        """What the user may see now."""
        metrics = replace(self.metrics, num_preemptions=self.group.num_preemptions)
        return RequestOutput(
            self.request_id, self.prompt, self.prompt_token_ids, self.completions(), self.finished, metrics
        )

    def _got_token(self) -> None:
        if self.metrics.first_token_time is None:
            self.metrics = replace(self.metrics, first_token_time=time.perf_counter())

    def _finish(self) -> None:
        self.metrics = replace(self.metrics, finished_time=time.perf_counter())


class SampledRequest(Request):
    """`n` texts, each drawn from a random stream of its own."""

    def __init__(
        self,
        prompt: str | None,
        params: SamplingParams,
        group: SequenceGroup,
        stop_token_ids: frozenset[int],
        tokenizer: Tokenizer | None,
        seed: int,
    ) -> None:
        super().__init__(prompt, params, group, stop_token_ids)
        self._tokenizer = tokenizer
        self._seed = seed
        self._texts = {
            seq: Completion(i, seq, params, stop_token_ids, group.max_num_tokens, tokenizer)
            for i, seq in enumerate(group.sequences)
        }

    def choose(self, logits: list[tuple[Sequence, np.ndarray]]) -> list[NextToken]:
        tokens = []
        for seq, row in logits:  # row: [V]
            text = self._texts[seq]
            draw = random_number(self._seed, text.index, len(seq.token_ids))
            token_id = sample(row, self.params, draw, text.forbidden_tokens)
            tokens.append(NextToken(seq, token_id, self._logprobs(row, token_id)))
        return tokens

    def take(self, tokens: list[NextToken]) -> list[Sequence]:
        self._got_token()
        for seq, token_id, logprobs in tokens:
            self._texts[seq].add_token(token_id, logprobs)
        if all(text.finish_reason for text in self._texts.values()):
            self._finish()
        return [seq for seq, _, _ in tokens if self._texts[seq].finish_reason]

    def completions(self) -> list[CompletionOutput]:
        return [text.output() for text in self._texts.values()]

    def abort(self) -> None:
        for text in self._texts.values():
            if text.finish_reason is None:
                text.finish("abort")
        super().abort()

    def _logprobs(self, logits: np.ndarray, token_id: int) -> dict[int, Logprob] | None:
        if self.params.logprobs is None:
            return None
        text = self._tokenizer.token_text if self._tokenizer else lambda token_id: ""
        top = top_logprobs(logits, token_id, self.params.logprobs)
        return {token: Logprob(logprob, rank, text(token)) for token, (logprob, rank) in top.items()}


class BeamRequest(Request):
    """The `beam_width` best texts that beam search finds. Beams share blocks, branch, and die."""

    def __init__(
        self,
        prompt: str | None,
        params: SamplingParams,
        group: SequenceGroup,
        stop_token_ids: frozenset[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__(prompt, params, group, stop_token_ids)
        self._tokenizer = tokenizer
        self._aborted = False
        self._seq_numbers = count(1)
        self._search = BeamSearch(
            width=group.max_num_seqs,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            stop_token_ids=stop_token_ids,
            max_new_tokens=group.max_num_tokens - group.leader.num_prompt_tokens,
        )

    def choose(self, logits: list[tuple[Sequence, np.ndarray]]) -> list[NextToken]:
        beams = [seq for seq, _ in logits]
        texts = [seq.output_token_ids for seq in beams]
        logprobs = log_softmax(np.stack([row for _, row in logits]))  # [num_beams, V]
        if len(texts[0]) < self.params.min_tokens:
            logprobs[:, list(self.stop_token_ids)] = -np.inf
        return [NextToken(beams[parent], token, None) for parent, token in self._search.advance(texts, logprobs)]

    def take(self, tokens: list[NextToken]) -> list[Sequence]:
        self._got_token()
        parents = [seq for seq, _, _ in tokens]
        beams = []
        for i, (parent, token_id, _) in enumerate(tokens):
            is_last_child = parent not in parents[i + 1 :]  # it takes the place of its parent
            beam = parent if is_last_child else parent.fork(f"{self.request_id}.{next(self._seq_numbers)}")
            beams.append((beam, token_id))
        for beam, token_id in beams:
            beam.token_ids.append(token_id)
        dead = [seq for seq in self.group.sequences if seq not in parents]
        self.group.sequences = [beam for beam, _ in beams] + dead
        if self._search.done:
            self._finish()
        return dead

    def completions(self) -> list[CompletionOutput]:
        """The best texts that are finished; while the search goes on, the beams as they stand."""
        if not self.finished or self._aborted:
            reason = "abort" if self._aborted else None
            texts = [seq.output_token_ids for seq in self.group.sequences]
            found = [(logprob, None, text, reason) for logprob, text in zip(self._search.logprobs, texts)]
            return [self._completion(i, *each) for i, each in enumerate(found)]
        return [
            self._completion(i, logprob, score, text, "stop" if text[-1] in self.stop_token_ids else "length")
            for i, (score, logprob, text) in enumerate(self._search.finished)
        ]

    def abort(self) -> None:
        self._aborted = True
        super().abort()

    def _completion(
        self, index: int, logprob: float, score: float | None, token_ids: list[int], reason: str | None
    ) -> CompletionOutput:
        text = self._tokenizer.decode(token_ids) if self._tokenizer else ""
        stop_reason = token_ids[-1] if reason == "stop" else None
        return CompletionOutput(index, text, token_ids, None, logprob, reason, stop_reason, score)
