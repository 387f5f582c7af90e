"""One request on its way through the engine, and what its user gets to see of it.

There are two kinds: a request of `n` samples has a Completion for each (sampled.py); a beam search has beams instead,
sequences that come and go until the best texts are known (beams.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minipage.engine.completion import CompletionOutput
from minipage.errors import RequestError
from minipage.model.tokenizer import Tokenizer
from minipage.sampling import Draw, Logprob, SamplingParams
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
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # of each token of the prompt, if asked for
    num_cached_tokens: int = 0  # of the prompt, which the prefix cache knew


@dataclass(slots=True)  # not a NamedTuple: every step makes one for each sequence, and that would take twice as long
class NextToken:
    """A token for one sequence. Of a beam there may be several, or none: then it branches, or dies."""

    seq: Sequence
    token_id: int
    logprobs: dict[int, Logprob] | None  # if the request asked for them


class Choice(NamedTuple):
    """What one sequence, which has come to its end, may choose from."""

    seq: Sequence
    token_id: int | None  # the token that was drawn for it; None if it asked for no draw
    logits: np.ndarray | None  # [V], if the request looks at them itself
    ahead: list[int] | None = None  # tokens after which it chooses, and which the sequence does not have yet


@dataclass(eq=False, repr=False)
class Request:
    """What sampled requests and beam searches have in common: a group of sequences, its parameters, and its end.

    `group` holds its sequences. Their tokens count, and whether the request was ended; all else here follows from them,
    and `restore` works it out again if something failed half way.
    """

    prompt: str | None  # None: it was given as token ids
    params: SamplingParams
    group: SequenceGroup
    stop_token_ids: frozenset[int]
    tokenizer: Tokenizer | None

    finished = False
    is_claimed = False  # its news belong to a generate() or stream() call, and not to whoever calls step()

    def __post_init__(self) -> None:
        self.seed = self.params.seed or 0  # where random draws start; without one in params, the engine draws it
        self.prompt_token_ids = self.group.leader.token_ids.copy()
        self.ended_by: str | None = None  # "abort" or "error", if it did not come to its own end
        self.error: str | None = None  # what is the matter, in a sentence
        self.prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._times: dict[str, float] = {}
        self._note("arrival_time")

    @property
    def request_id(self) -> str:
        return self.group.group_id

    @property
    def metrics(self) -> RequestMetrics:
        return RequestMetrics(num_preemptions=self.group.num_preemptions, **self._times)

    @property
    def looks_at_logits(self) -> bool:
        """Whether a drawn token is not enough to choose from."""
        raise NotImplementedError

    def next_draw(self, seq: Sequence) -> Draw | None:
        """How the next token of a sequence is drawn; None: it is not drawn."""
        return None

    def score(self, position: int, logits: np.ndarray) -> None:
        """Note how likely the prompt's token after `position` was, by the logits [V] there."""
        raise NotImplementedError

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

    def take(self, tokens: list[NextToken]) -> tuple[list[NextToken], list[Sequence]]:
        """Let the sequences have their tokens. Returns those that they took, and the sequences that are done.

        Of several tokens for one sequence, it takes none behind its end.
        """
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
            prompt_logprobs=self.prompt_logprobs and self.prompt_logprobs.copy(),
            num_cached_tokens=self.group.num_cached_tokens,
        )

    def _note(self, event: str) -> None:
        """Remember when something happened first. With "finished_time" the request is finished."""
        if event not in self._times:
            self.finished = self.finished or event == "finished_time"  # first: what is noted is not noted again
            self._times[event] = time.perf_counter()


def place_of(seq: Sequence) -> str:
    """The token that a sequence is about to get, in a sentence."""
    return f"token {len(seq.token_ids)} (counted from 0, prompt included)"


def not_numbers(seq: Sequence) -> RequestError:
    return RequestError(
        f"the model's logits for {place_of(seq)} are not finite numbers. "
        "Something overflowed (float16 holds 65,504 at most), or the model's weights are damaged: fetch them again, or "
        "use dtype='float32' and kv_cache_dtype='float32', if it does not do so already."
    )
