"""Beam search: keep the few likeliest texts, and extend each of them, at every step.

    beams               candidates: every beam with every token          the best of them
    "To be"    -1.2  ─▶ "To be or"  -1.9    "To be a"    -2.1   ...   ─▶  "To be or"  -1.9
    "To have"  -1.5     "To have a" -2.8    "To have to" -3.3   ...       "To be a"   -2.1

Here "To be" has two children, which share all of its blocks; "To have" has none and gives its blocks back. A candidate
that ends becomes a hypothesis, scored by log probability / length ** length_penalty, so that long texts are not at a
loss for having more factors. The rules, down to when to stop, are those of transformers' `generate`, so that results
can be compared. Nothing here knows of blocks, or of K and V.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt


class Continuation(NamedTuple):
    """A beam of the next step: one of this step's beams, and a token."""

    parent: int  # which of this step's beams
    token_id: int


class Hypothesis(NamedTuple):
    """A finished text."""

    score: float  # logprob / length ** length_penalty
    logprob: float  # of all its tokens together
    token_ids: list[int]  # without the prompt


@dataclass(eq=False, repr=False)
class BeamSearch:
    """Which beams go on, and which texts are finished.

    early_stopping: True: stop as soon as there are `width` texts. False: when even the best beam, ended now, would not
        enter the `width` best. "never": with a positive length penalty, when it could not even at full length.
    """

    width: int  # how many beams, and how many texts in the end
    length_penalty: float  # above 0 favours long texts, below 0 short ones
    early_stopping: bool | Literal["never"]
    stop_token_ids: Collection[int]  # tokens that end a text
    max_new_tokens: int  # a text of this many tokens is finished, too

    def __post_init__(self) -> None:
        self.logprobs = [0.0]  # of each beam, best first; at first the prompt alone is a beam
        self.finished: list[Hypothesis] = []  # at most `width`, best first
        self.done = False

    def advance(self, texts: Sequence[list[int]], next_logprobs: npt.NDArray[Any]) -> list[Continuation]:
        """One step: what each beam has generated so far, and [num_beams, V] log probabilities of its next token.

        Returns the beams of the next step, best first; none, if this was the last.
        """
        length = len(texts[0]) + 1  # of a candidate; all beams are equally long
        totals = (np.array(self.logprobs)[:, None] + next_logprobs).ravel()  # [num_beams * V]
        # Each beam may offer every stop token among its best; this many candidates still hold `width` that go on.
        num_candidates = max(2, 1 + len(self.stop_token_ids)) * self.width
        best = np.argsort(-totals, kind="stable")[:num_candidates]  # [num_candidates]
        is_open = self.early_stopping is not True or len(self.finished) < self.width
        going_on: list[Continuation] = []
        logprobs = []
        for rank, candidate in enumerate(best):
            parent, token_id = divmod(int(candidate), next_logprobs.shape[1])
            logprob = float(totals[candidate])
            if token_id in self.stop_token_ids or length == self.max_new_tokens:
                if rank < self.width and is_open:
                    self._finish(Hypothesis(self._score(logprob, length), logprob, [*texts[parent], token_id]))
            elif len(going_on) < self.width:
                going_on.append(Continuation(parent, token_id))
                logprobs.append(logprob)
        self.logprobs = logprobs
        self.done = not going_on or not self._can_improve(length)
        return [] if self.done else going_on

    def _score(self, logprob: float, length: int) -> float:
        with np.errstate(all="ignore"):  # beyond what a float holds the score is -0.0 or -inf, for all texts alike
            return float(np.float64(logprob) / np.float64(length) ** self.length_penalty)

    def _finish(self, hypothesis: Hypothesis) -> None:
        """Keep the `width` best; of equals the earlier."""
        self.finished = sorted([*self.finished, hypothesis], key=lambda h: -h.score)[: self.width]

    def _can_improve(self, length: int) -> bool:
        """Whether a beam may still make it among the `width` best texts."""
        if len(self.finished) < self.width:
            return True
        at_full_length = self.early_stopping == "never" and self.length_penalty > 0
        hoped_for = self._score(self.logprobs[0], self.max_new_tokens if at_full_length else length)
        return self.early_stopping is not True and hoped_for > self.finished[-1].score
