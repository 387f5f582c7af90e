"""A conversation with a chat model: each turn is one request, whose prompt is everything that was said before.

    turn 1   system  question 1                                   -> answer 1
    turn 2   system  question 1  answer 1  question 2             -> answer 2
             └─ computed in turn 1: found in the prefix cache ─┘

So without a prefix cache each turn would cost more than the one before. With it, only what is new is computed, and the
beginning of the last block, which was not full.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from minipage.engine.conversations import chat_prompts
from minipage.errors import count
from minipage.trace.recording.wording import join

if TYPE_CHECKING:
    from minipage.engine.llm import LLM
    from minipage.engine.request import RequestOutput
    from minipage.sampling import SamplingParams


class Answer(NamedTuple):
    """What is known of the last answer, be it complete or not."""

    num_prompt_tokens: int  # of the whole conversation up to its question
    num_found: int  # of these, in the prefix cache
    num_tokens: int  # that it has itself
    finish_reason: str | None  # None: it was stopped
    error: str | None  # why it could not go on


class Conversation:
    """Messages, and the engine that answers them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None = None) -> None:
        self.llm = llm
        self.params = params
        self.system = system
        self.reset()

    def reset(self) -> None:
        """Begin anew. What was computed can still be found, until somebody needs its blocks."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.answer: Answer | None = None
        self._token_ids: list[int] = []  # of the last turn, its answer included

    @property
    def has_turns(self) -> bool:
        return any(message["role"] == "assistant" for message in self.messages)

    def check(self) -> None:
        """Raise InvalidRequestError if the model cannot chat at all, or not as the parameters want it."""
        [prompt] = chat_prompts([*self.messages, {"role": "user", "content": "Hello"}], self.llm.tokenizer)
        self.llm.abort(self.llm.add_request(prompt, self.params))
        self.llm.step()  # which tells what was aborted, and computes nothing

    def ask(self, question: str) -> Generator[str, None, None]:
        """Yield the answer piece by piece. Closing the iterator, or Ctrl-C, stops it; what was said stays said.

        A question that nothing was said to is taken back.

        Raises:
            InvalidRequestError: it cannot be served, because the conversation has become too long, for example.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        prompts = chat_prompts(messages, self.llm.tokenizer)
        num_found_before = self.llm.scheduler.num_hit_tokens
        said, output = "", None
        self.answer = None
        try:
            with closing(self.llm.stream(prompts, self.params)) as outputs:
                for output in outputs:
                    if not output.finished and self.params.beam_width:
                        continue  # another beam may be the best one yet
                    text = output.outputs[0].text
                    piece, said = text[len(said) :], text
                    if piece:
                        yield piece
        finally:
            if output is not None:
                self._note(output, self.llm.scheduler.num_hit_tokens - num_found_before)
            if said:
                self.messages = [*messages, {"role": "assistant", "content": said}]

    def _note(self, output: RequestOutput, num_found: int) -> None:
        answer = output.outputs[0]
        self._token_ids = output.prompt_token_ids + answer.token_ids
        sizes = len(output.prompt_token_ids), num_found, len(answer.token_ids)
        self.answer = Answer(*sizes, answer.finish_reason, output.error)

    # ---- what became of it in memory

    @property
    def blocks(self) -> list[int]:
        """The full blocks that hold the conversation, and can be found by it; in its order."""
        cache = self.llm.scheduler.prefix_cache
        return cache.find([*self._token_ids, 0]).blocks if cache else []  # `find` leaves the last token out

    @property
    def is_full(self) -> bool:
        """Whether the context has come to its end."""
        return len(self._token_ids) >= self.llm.max_model_len

    def report(self) -> str:
        """How much of the conversation was found in the prefix cache, and where it lies now."""
        if self.answer is None:
            return "Nothing was computed."
        total, found = self.answer.num_prompt_tokens, self.answer.num_found
        if self.llm.scheduler.prefix_cache is None:
            return f"Prefix caching is off: {count(total, 'token')} computed, {self.answer.num_tokens} answered."
        size = self.llm.block_pool.block_size
        where = f" ({count(found // size, 'block')})" if found else ""
        sentence = (
            f"Found {found:,} of {count(total, 'token')} in the prefix cache{where}, computed {total - found:,}, "
            f"answered {self.answer.num_tokens:,}."
        )
        held = f"It holds {named(self.blocks)}." if self.blocks else "It fills no block yet."
        return f"{sentence} {held}"


def named(blocks: list[int]) -> str:
    """[3, 4, 5, 9] -> blocks 3-5 and 9"""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and runs[-1][-1] + 1 == block:
            runs[-1].append(block)
        else:
            runs.append([block])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"block{'s' if len(blocks) > 1 else ''} {join(texts)}"
