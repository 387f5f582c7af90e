"""One request on its way through the engine: its texts, and what the user gets to see of them.

A request of `n` samples has a Completion for each. A beam search has beams instead: sequences that come and go, until
the best texts are known.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from minipage.engine.completion import Completion, CompletionOutput
from minipage.errors import RequestError
from minipage.model.tokenizer import Tokenizer
from minipage.sampling import NO_TOKEN, Draw, Logprob, SamplingParams, random_number, top_logprobs
from minipage.sampling.beam_search import BeamSearch
from minipage.sampling.sampler import log_softmax
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
    error: str | None = None  # why it could not go on, if finish_reason is "error"
    num_cached_tokens: int = 0  # of the prompt, which the prefix cache knew


class NextToken(NamedTuple):
    """A token for one sequence. Of a beam there may be several, or none: then it branches, or dies."""

    seq: Sequence
    token_id: int
    logprobs: dict[int, Logprob] | None  # if the request asked for them


class Choice(NamedTuple):
    """What one sequence, which has come to its end, may choose from."""

    seq: Sequence
    token_id: int | None  # the token that was drawn for it; None if it asked for no draw
    logits: np.ndarray | None  # [V], if the request looks at them itself


class Beams(NamedTuple):
    """How far a beam search has come."""

    search: BeamSearch
    texts: list[tuple[Sequence, list[int]]]  # each beam and its tokens, prompt included; best first


class Request:
    """What sampled requests and beam searches have in common.

    `group` holds its sequences. Their tokens count, and whether the request was ended; all else here follows from them,
    and `restore` works it out again if something failed half way.
    """

    def __init__(
        self,
        prompt: str | None,
        params: SamplingParams,
        group: SequenceGroup,
        stop_token_ids: frozenset[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.group = group
        self.stop_token_ids = stop_token_ids
        self.tokenizer = tokenizer
        self.seed = params.seed or 0  # where random draws start; without one in params, the engine draws it
        self.prompt_token_ids = group.leader.token_ids.copy()
        self.ended_by: str | None = None  # "abort" or "error", if it did not come to its own end
        self.error: str | None = None  # what is the matter, in a sentence
        self._times: dict[str, float] = {}
        self._note("arrival_time")

    @property
    def request_id(self) -> str:
        return self.group.group_id

    @property
    def finished(self) -> bool:
        return "finished_time" in self._times

    @property
    def metrics(self) -> RequestMetrics:
        return RequestMetrics(num_preemptions=self.group.num_preemptions, **self._times)

    @property
    def looks_at_logits(self) -> bool:
        """Whether a drawn token is not enough to choose from."""
        raise NotImplementedError

    def draw(self, seq: Sequence) -> Draw | None:
        """How the next token of a sequence is drawn; None: it is not drawn."""
        return None

    def choose(self, choices: list[Choice]) -> list[NextToken]:
        """The next tokens of the sequences that have come to their end."""
        raise NotImplementedError

    def choose_or_fail(self, choices: list[Choice]) -> list[NextToken]:
        """Its next tokens; none, with the reason in `error`, if it cannot choose: its own fault, so the others go on.

        Choosing changes nothing, so what fails is tried once more.
        """
        for _ in range(2):
            try:
                self.error = None
                return self.choose(choices)
            except Exception as error:
                self.error = f"request {self.request_id!r} cannot go on: {str(error) or type(error).__name__}"
        return []

    def take(self, tokens: list[NextToken]) -> list[Sequence]:
        """Let the sequences have their tokens; returns those that are done with their blocks."""
        raise NotImplementedError

    def completions(self) -> list[CompletionOutput]:
        raise NotImplementedError

    def end(self, reason: str) -> None:
        """Nothing more will come: "abort", or "error"."""
        self.ended_by = reason  # from here on it counts
        self.restore()

    def restore(self) -> None:
        """Bring texts and sequences in line with the tokens that count. Block tables are up to the scheduler."""
        raise NotImplementedError

    def started(self) -> None:
        """It is scheduled."""
        self._note("first_scheduled_time")

    def output(self) -> RequestOutput:
        """What the user may see now."""
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=self.completions(),
            finished=self.finished,
            metrics=self.metrics,
            error=self.error,
            num_cached_tokens=self.group.num_cached_tokens,
        )

    def _note(self, event: str) -> None:
        """Remember when something happened first."""
        if event not in self._times:
            self._times[event] = time.perf_counter()


class SampledRequest(Request):
    """`n` texts, drawn independently of each other."""

    @cached_property
    def texts(self) -> dict[Sequence, Completion]:
        end = self.stop_token_ids, self.group.max_num_tokens
        return {
            seq: Completion(i, seq, self.params, *end, self.tokenizer) for i, seq in enumerate(self.group.sequences)
        }

    @property
    def looks_at_logits(self) -> bool:
        return self.params.logprobs is not None

    def draw(self, seq: Sequence) -> Draw:
        text = self.texts[seq]
        is_greedy = self.params.temperature == 0
        number = 0.0 if is_greedy else random_number(self.seed, text.index, len(seq.token_ids))
        return Draw(self.params, number, text.forbidden_tokens)

    def choose(self, choices: list[Choice]) -> list[NextToken]:
        tokens = []
        for seq, token_id, logits in choices:
            assert token_id is not None, "a sampled request draws all its tokens"
            if token_id == NO_TOKEN:
                raise not_numbers(seq)
            tokens.append(NextToken(seq, token_id, self._logprobs(logits, token_id)))
        return tokens

    def take(self, tokens: list[NextToken]) -> list[Sequence]:
        self._note("first_token_time")
        texts, done = self.texts, []
        for seq, token_id, logprobs in tokens:
            texts[seq].add_token(token_id, logprobs)
            if texts[seq].finish_reason:
                done.append(seq)
        if done and all(text.finish_reason for text in texts.values()):
            self._note("finished_time")
        return done

    def completions(self) -> list[CompletionOutput]:
        return [text.output() for text in self.texts.values()]

    def restore(self) -> None:
        for text in self.texts.values():
            text.restore()
            if text.finish_reason is None and self.ended_by:
                text.finish(self.ended_by)
        self.group.sequences = [seq for seq in self.texts if not seq.finished]
        if not self.group.sequences:
            self._note("finished_time")

    def _logprobs(self, logits: np.ndarray | None, token_id: int) -> dict[int, Logprob] | None:
        if self.params.logprobs is None or logits is None:
            return None
        decode = self.tokenizer.token_text if self.tokenizer else lambda token_id: ""
        top = top_logprobs(logits, token_id, self.params.logprobs)
        return {token: Logprob(logprob, rank, decode(token)) for token, (logprob, rank) in top.items()}


class BeamRequest(Request):
    """The `beam_width` best texts that beam search finds. Beams share blocks, branch, and die."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        search = BeamSearch(
            width=self.group.max_num_seqs,
            length_penalty=self.params.length_penalty,
            early_stopping=self.params.early_stopping,
            stop_token_ids=self.stop_token_ids,
            max_new_tokens=self.group.max_num_tokens - len(self.prompt_token_ids),
        )
        self._beams = Beams(search, [(self.group.leader, self.prompt_token_ids)])
        self._num_forks = count(1)

    @property
    def search(self) -> BeamSearch:
        return self._beams.search

    @property
    def looks_at_logits(self) -> bool:
        return True

    def choose(self, choices: list[Choice]) -> list[NextToken]:
        beams = [choice.seq for choice in choices]
        texts = [seq.output_token_ids for seq in beams]
        logits = np.stack([c.logits for c in choices if c.logits is not None])  # [num_beams, V]
        for seq, highest in zip(beams, logits.max(axis=-1)):
            if not np.isfinite(highest):
                raise not_numbers(seq)
        logprobs = log_softmax(logits)  # [num_beams, V]
        if len(texts[0]) < self.params.min_tokens:
            logprobs[:, list(self.stop_token_ids)] = -np.inf
        self._advanced = copy(self.search)  # until the tokens are taken, the step may still fail
        return [NextToken(beams[parent], token, None) for parent, token in self._advanced.advance(texts, logprobs)]

    def take(self, tokens: list[NextToken]) -> list[Sequence]:
        self._note("first_token_time")
        parents = [token.seq for token in tokens]
        beams = []
        for i, (parent, token_id, _) in enumerate(tokens):
            is_last_child = parent not in parents[i + 1 :]  # it takes the place of its parent
            seq = parent if is_last_child else parent.fork(f"{self.request_id}.{next(self._num_forks)}")
            beams.append((seq, [*parent.token_ids, token_id]))
        dead = [seq for seq in self.group.sequences if seq not in parents]
        for seq in dead:
            seq.finished = True
        self._beams = Beams(self._advanced, beams)  # from here on it counts
        self.restore()
        self.group.sequences += dead
        return dead

    def restore(self) -> None:
        is_over = self.search.done or self.ended_by is not None
        for seq, token_ids in self._beams.texts:
            seq.token_ids, seq.finished = token_ids, is_over
        self.group.sequences = [seq for seq, _ in self._beams.texts]
        if is_over:
            self._note("finished_time")

    def completions(self) -> list[CompletionOutput]:
        """The best texts that are finished; while the search goes on, or if it was aborted, the beams as they stand."""
        if not self.search.done:
            beams = zip(self.search.logprobs, (seq for seq, _ in self._beams.texts))
            return [self._completion(i, lp, seq.output_token_ids, self.ended_by) for i, (lp, seq) in enumerate(beams)]
        return [
            self._completion(i, lp, text, "stop" if text[-1] in self.stop_token_ids else "length", score)
            for i, (score, lp, text) in enumerate(self.search.finished)
        ]

    def _completion(
        self, index: int, logprob: float, token_ids: list[int], reason: str | None, score: float | None = None
    ) -> CompletionOutput:
        ends_in_stop = reason == "stop" and not self.params.include_stop_str_in_output
        said = token_ids[:-1] if ends_in_stop else token_ids
        text = self.tokenizer.decode(said, self.params.skip_special_tokens) if self.tokenizer else ""
        stop_reason = token_ids[-1] if reason == "stop" else None
        return CompletionOutput(index, text, token_ids, None, logprob, reason, stop_reason, score)


def not_numbers(seq: Sequence) -> RequestError:
    return RequestError(
        f"the model's logits for token {len(seq.token_ids)} (counted from 0, prompt included) are not finite numbers. "
        "Something overflowed (float16 holds 65,504 at most), or the model's weights are damaged: fetch them again, or "
        "use dtype='float32' and kv_cache_dtype='float32', if it does not do so already."
    )
