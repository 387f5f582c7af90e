"""From what a user hands in to a request that can be served, or a refusal. Nothing is queued or changed here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from minipage.engine.beams import BeamRequest
from minipage.engine.prompts import Prompt, read_prompt
from minipage.engine.request import Request
from minipage.engine.sampled import SampledRequest
from minipage.errors import InvalidRequestError, count, shown
from minipage.memory import BlockPool, BlockTable
from minipage.model.tokenizer import Tokenizer
from minipage.sampling import Grammar, GrammarCompiler, SamplingParams, check_token_ids, is_whole, make_processors
from minipage.scheduling import Sequence, SequenceGroup


@dataclass
class Intake:
    """Makes requests for one engine: for its model, and for sequences in its block pool."""

    tokenizer: Tokenizer | None
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    block_pool: BlockPool
    block_table: type[BlockTable]
    sequence_group: type[SequenceGroup] = SequenceGroup

    def make_request(
        self, request_id: Any, prompt: Prompt, params: SamplingParams | None, priority: int = 0, cache_salt: str = ""
    ) -> Request:
        """A request that nobody knows of yet. Raises InvalidRequestError if it cannot be served."""
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(f"params is {shown(params)}; it must be SamplingParams(...).")
        if not isinstance(request_id, str):
            raise InvalidRequestError(f"request_id is {shown(request_id)}; it must be a string.")
        if not isinstance(cache_salt, str) or not is_whole(priority):
            raise InvalidRequestError(
                f"cache_salt is {shown(cache_salt)} and must be a string; priority is {shown(priority)} and "
                "must be a whole number."
            )
        known = self.read(prompt)
        text, token_ids = known["prompt"], known["prompt_token_ids"]
        stop = self._stop_token_ids(params)
        if params.beam_width and params.beam_width > self.vocab_size:
            raise InvalidRequestError(f"beam_width is {params.beam_width}; this model has {self.vocab_size} tokens.")
        seq_ids = [request_id] if params.n == 1 else [f"{request_id}.{i}" for i in range(params.n)]
        sequences = [Sequence(seq_id, token_ids, self.block_table(self.block_pool)) for seq_id in seq_ids]
        width, longest = params.beam_width or params.n, self._max_num_tokens(len(token_ids), params)
        group = self.sequence_group(request_id, sequences, longest, width, priority, cache_salt)
        if params.beam_width:
            return BeamRequest(text, params, group, stop, self.tokenizer)
        if params.prompt_logprobs is not None:
            group.to_score = range(len(token_ids) - 1)
        encode = self.tokenizer.encode if self.tokenizer else None
        processors = make_processors(params, token_ids, stop, encode, self.vocab_size)
        grammar = self.grammar(params)
        return SampledRequest(text, params, group, stop, self.tokenizer, processors=processors, grammar=grammar)

    def read(self, prompt: Prompt) -> dict[str, Any]:
        """Its text, if there is one, and its tokens, as a dict that is a prompt, too."""
        text, token_ids = read_prompt(prompt, self.tokenizer, self.vocab_size)
        if len(token_ids) >= self.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {count(len(token_ids), 'token')}; with a context of {self.max_model_len} it may have "
                f"{self.max_model_len - 1}, so that one can be generated. Shorten it."
            )
        return {"prompt": text, "prompt_token_ids": token_ids}

    def _stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        """The tokens that end a text."""
        check_token_ids(tuple(params.stop_token_ids or ()), self.vocab_size, "stop_token_ids")
        stop = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else self.eos_token_ids)
        if params.min_tokens > 0 and len(stop) == self.vocab_size:
            raise InvalidRequestError("min_tokens keeps all of stop_token_ids from coming, but they are all there are.")
        return stop

    def grammar(self, params: SamplingParams) -> Grammar | None:
        """What the texts have to look like. Of what was asked for before, it is known; any thread may ask."""
        wanted = params.structured_outputs
        return None if wanted is None else self._compiler.compile(wanted)

    @cached_property
    def _compiler(self) -> GrammarCompiler:
        """Made for the first who asks: for a large vocabulary it takes about a second, and few ask."""
        if self.tokenizer is None:
            raise InvalidRequestError("structured_outputs is about texts, but this model has no tokenizer.")
        return GrammarCompiler(self.tokenizer.backend.to_str(), self.vocab_size, self.eos_token_ids)

    def _max_num_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """How long a sequence may get: max_tokens more than the prompt, as far as the context goes."""
        if params.max_tokens is not None:
            return min(num_prompt_tokens + params.max_tokens, self.max_model_len)
        pool, width = self.block_pool, params.beam_width or params.n
        most = self.sequence_group.longest_that_fits(num_prompt_tokens, width, pool.num_blocks, pool.block_size)
        return max(num_prompt_tokens + 1, min(self.max_model_len, most))


@contextmanager
def saying_which(number: int, total: int) -> Iterator[None]:
    """A prompt that is refused is named, if it is one of many."""
    try:
        yield
    except InvalidRequestError as error:
        where = f"prompt {number} of {total} (counted from 0): " if total > 1 else ""
        raise InvalidRequestError(f"{where}{error}") from None
