"""A request of `n` texts, drawn independently of each other."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from minipage.engine.completion import Completion, CompletionOutput
from minipage.engine.request import Choice, NextToken, Request, not_numbers
from minipage.sampling import NO_TOKEN, Draw, Logprob, random_number, top_logprobs
from minipage.scheduling import Sequence


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
