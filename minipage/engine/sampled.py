"""A request of `n` texts, drawn independently of each other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minipage.engine.completion import Completion, CompletionOutput
from minipage.engine.request import Choice, NextToken, Request, not_numbers, place_of
from minipage.errors import RequestError
from minipage.sampling import NO_TOKEN, Draw, Grammar, Logprob, Processors, only_those, random_number, top_logprobs
from minipage.scheduling import Sequence


@dataclass(eq=False, repr=False)
class SampledRequest(Request):
    """`n` texts, drawn independently of each other."""

    processors: Processors | None = None  # what is done to their logits, if anything
    grammar: Grammar | None = None  # what they have to look like

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * len(self.prompt_token_ids)  # and so it stays for the first

    @cached_property
    def texts(self) -> dict[Sequence, Completion]:
        alike = self.params, self.stop_token_ids, self.group.max_num_tokens, self.tokenizer, self.grammar
        return {seq: Completion(i, seq, *alike) for i, seq in enumerate(self.group.sequences)}

    @property
    def looks_at_logits(self) -> bool:
        return self.params.logprobs is not None

    def next_draw(self, seq: Sequence, ahead: list[int] | None = None) -> Draw:
        """ahead: tokens after which it is drawn, and which the sequence does not have yet."""
        ahead, number = ahead or [], 0.0
        if self.params.temperature > 0:
            number = random_number(self.seed, self.texts[seq].index, len(seq.token_ids) + len(ahead))
        if self.processors is None:  # nearly always
            return Draw(self.params, number)
        grammar = self.texts[seq].grammar_after(ahead)
        return Draw(self.params, number, self.processors.adjustment([*seq.output_token_ids, *ahead], grammar))

    def score(self, position: int, logits: np.ndarray) -> None:
        assert self.prompt_logprobs is not None
        token_id = self.prompt_token_ids[position + 1]
        self.prompt_logprobs[position + 1] = self._logprobs(logits, token_id, self.params.prompt_logprobs)
        self.group.to_score = range(position + 1, self.group.to_score.stop)  # the same again, if a step is taken back

    def choose(self, choices: list[Choice]) -> list[NextToken]:
        tokens = []
        for seq, token_id, logits, ahead in choices:
            assert token_id is not None, "a sampled request draws all its tokens"
            if token_id == NO_TOKEN:
                raise self._no_token(seq)
            if logits is not None and (grammar := self.texts[seq].grammar_after(ahead or [])):
                logits = only_those(grammar.allowed(), logits)  # [V]; as in vLLM, these alone share the probability
            tokens.append(NextToken(seq, token_id, self._logprobs(logits, token_id, self.params.logprobs)))
        return tokens

    def take(self, tokens: list[NextToken]) -> tuple[list[NextToken], list[Sequence]]:
        if "first_token_time" not in self._times:  # as _note asks, too: this is for each token, and saves the call
            self._note("first_token_time")
        taken: list[NextToken] = []
        done: list[Sequence] = []
        for token in tokens:
            text = self.texts[token.seq]
            if not text.finish_reason:  # otherwise an earlier one, of several, has ended it
                text.add_token(token.token_id, token.logprobs)
                taken.append(token)
                if text.finish_reason:
                    done.append(token.seq)
        if done and all(text.finish_reason for text in self.texts.values()):
            self._note("finished_time")
        return taken, done

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

    def _no_token(self, seq: Sequence) -> RequestError:
        """Why none could be drawn: what the request asks for excludes all, or the logits are no numbers."""
        why = self.processors and self.processors.exclusion(self.next_draw(seq).adjustment, self.texts[seq].grammar)
        return RequestError(f"no token is left to choose for {place_of(seq)}{why}") if why else not_numbers(seq)

    def _logprobs(self, logits: np.ndarray | None, token_id: int, count: int | None) -> dict[int, Logprob] | None:
        """Of a token and of the `count` likeliest."""
        if count is None or logits is None:
            return None
        decode = self.tokenizer.token_text if self.tokenizer else lambda token_id: ""
        with np.errstate(invalid="ignore"):  # of what is no number, nobody knows how likely it is
            top = top_logprobs(logits, token_id, count)
        return {token: Logprob(logprob, rank, decode(token)) for token, (logprob, rank) in top.items()}
