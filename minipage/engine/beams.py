"""A request for the best texts that beam search finds. Beams share blocks, branch, and die."""

from __future__ import annotations

from copy import copy
from itertools import count
from typing import NamedTuple

import numpy as np

from minipage.engine.completion import CompletionOutput
from minipage.engine.detokenizer import Detokenizer
from minipage.engine.request import Choice, NextToken, Request, not_numbers
from minipage.sampling.beam_search import BeamSearch
from minipage.sampling.sampler import log_softmax
from minipage.scheduling import Sequence


class Beams(NamedTuple):
    """How far a beam search has come."""

    search: BeamSearch
    texts: list[tuple[Sequence, list[int]]]  # each beam and its tokens, prompt included; best first


class BeamRequest(Request):
    """The `beam_width` best texts that beam search finds. Beams share blocks, branch, and die."""

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def take(self, tokens: list[NextToken]) -> tuple[list[NextToken], list[Sequence]]:
        self._note("first_token_time")
        parents = [token.seq for token in tokens]
        beams = []
        for i, (parent, token) in enumerate(zip(parents, tokens)):
            is_last_child = parent not in parents[i + 1 :]  # it takes the place of its parent
            seq = parent if is_last_child else parent.fork(f"{self.request_id}.{next(self._num_forks)}")
            beams.append((seq, [*parent.token_ids, token.token_id]))
        dead = [seq for seq in self.group.sequences if seq not in parents]
        for seq in dead:
            seq.finished = True
        self._beams = Beams(self._advanced, beams)  # from here on it counts
        self.restore()
        self.group.sequences += dead
        return tokens, dead

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
        text = Detokenizer(self.tokenizer, self.params.skip_special_tokens, self.prompt_token_ids)
        for token_id in token_ids[:-1] if ends_in_stop else token_ids:
            text.add(token_id)
        text.flush()
        stop_reason = token_ids[-1] if reason == "stop" else None
        return CompletionOutput(index, text.text, token_ids, None, logprob, reason, stop_reason, score)
