"""Speculative decoding: guess the next tokens of a text, and compute all of them in one step.

A step of one text reads all weights to make one token. With three tokens guessed it reads them once all the same, and
has the logits after each of the four (Leviathan et al., arXiv 2211.17192):

    tokens       ... the king of | France and the      the last token, and three drafts: slots are allocated ahead
    drawn after                of: France  France: and  and: her        what the model says at each place
    kept                           France          and       her        two drafts were right, one token is new, and
                                                                        the slot of "the" is given back

Nothing changes in what is said. Here a draw depends on the seed, the text's number and the place alone, so a draft is
right if it is the token that would have been drawn there anyway: greedy or not, with penalties, grammars and stops.

Scheduler, tables and kernels know nothing of it: `Speculation` stands between an engine and its phases, as a recorder
does. After `schedule` it lengthens the chunks of those who only want their next token, as far as blocks are free and
the step is small. A wrong draft is never part of a sequence, so whatever raises, there is nothing to take back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from minipage.engine.drafts import DraftModel, NGrams
from minipage.engine.phases import stand_between
from minipage.engine.request import Choice, NextToken, Request
from minipage.engine.sampled import SampledRequest
from minipage.engine.stats import Metric
from minipage.errors import ConfigurationError, require_positive, shown
from minipage.memory import BlockTable
from minipage.scheduling import Sequence, StepPlan
from minipage.scheduling.chunks import Chunk

if TYPE_CHECKING:
    from minipage.engine.engine import Engine

# Tokens of a step that has drafts. On a CPU, products of this many rows take little longer than of one, and much
# longer beyond; with more texts than this, nothing is drafted.
MOST_TOKENS = 16
LONGEST_PAUSE = 32  # steps without a draft, after several in a row of which nothing was right
METRICS = (  # in `LLM.stats()` and /metrics, if there is speculation
    Metric("vllm:spec_decode_num_drafts", "counter", "times that tokens were drafted for a text"),
    Metric("vllm:spec_decode_num_draft_tokens", "counter", "tokens drafted"),
    Metric("vllm:spec_decode_num_accepted_tokens", "counter", "those of them that were right"),
    Metric("vllm:spec_decode_num_accepted_tokens_per_pos", "counter", "the same by position: first draft, second, ..."),
)
OPTIONS = {"method", "model", "num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max"}


class Proposer(Protocol):
    def propose(self, texts: list[list[int]], counts: list[int]) -> list[list[int]]:
        """For each text a guess how it goes on: at most this many tokens, or none."""


@dataclass(slots=True)
class DraftedChunk(Chunk):
    """The last token of a sequence, and drafts after it."""

    drafts: list[int] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [self.seq.token_ids[-1], *self.drafts]

    @property
    def receivers(self) -> list[Sequence]:
        return [self.seq]

    @property
    def rows(self) -> list[tuple[int, list[Sequence]]]:
        drafts: list[tuple[int, list[Sequence]]] = [(self.start + 1 + i, []) for i in range(len(self.drafts))]
        return [(self.start, self.receivers), *drafts]


@dataclass
class Pause:
    """How long a text gets no drafts, because the last ones were wrong: twice as long each time."""

    length: int = 0
    left: int = 0

    def is_over(self) -> bool:
        self.left -= 1
        return self.left < 0

    def learn(self, num_accepted: int) -> None:
        self.length = 0 if num_accepted else min(2 * self.length + 1, LONGEST_PAUSE)
        self.left = self.length


class Speculation:
    """Drafts and verifies for one engine; made before anything else watches its phases.

    Args:
        config: vLLM's `speculative_config`. {"method": "ngram", "num_speculative_tokens": 4} looks in the text itself
            for what has followed its last `prompt_lookup_max` (3) to `prompt_lookup_min` (1) tokens before;
            {"model": NAME, "num_speculative_tokens": 4} asks a smaller model of the same tokenizer.
        make_llm: makes an engine for that model.

    Raises:
        ConfigurationError: the config makes no sense.
    """

    def __init__(self, engine: Engine, config: Mapping[str, Any], make_llm: Callable[..., Any]) -> None:
        self.engine = engine
        self.num_tokens, self.proposer = read(config, make_llm, engine.model.architecture.vocab_size)
        self._begin_to_count()
        self._pauses: WeakKeyDictionary[Sequence, Pause] = WeakKeyDictionary()
        self._phases = stand_between(engine, self, "schedule", "sample", "update", "stats", "reset_stats")

    def schedule(self) -> StepPlan:
        plan: StepPlan = self._phases["schedule"]()
        room = min(MOST_TOKENS, self.engine.scheduler.max_num_batched_tokens)
        room -= sum(chunk.num_tokens for chunk in plan.chunks)
        eager = [i for i, chunk in enumerate(plan.chunks) if self._may_draft(chunk)] if room > 0 else []
        counts = [self._most(plan.chunks[i]) for i in eager]
        drafts = self.proposer.propose([plan.chunks[i].seq.token_ids for i in eager], counts) if eager else []
        for i, its_drafts in zip(eager, drafts):
            chunk, its_drafts = plan.chunks[i], its_drafts[:room]
            table, pool = chunk.seq.block_table, self.engine.block_pool
            while its_drafts and table.blocks_to_allocate(len(its_drafts)) > pool.num_free:
                its_drafts = its_drafts[:-1]  # nobody is preempted for a guess
            if its_drafts:
                plan.copies += table.append(len(its_drafts))
                num_tokens = 1 + len(its_drafts)
                plan.chunks[i] = DraftedChunk(chunk.group, chunk.seq, chunk.start, num_tokens, its_drafts)
                room -= len(its_drafts)
        return plan

    def sample(self, plan: StepPlan, logits: Any) -> dict[Request, list[NextToken]]:
        tokens: dict[Request, list[NextToken]] = self._phases["sample"](plan, logits)
        firsts = {token.seq: token.token_id for its_tokens in tokens.values() for token in its_tokens}
        hopeful = [
            (chunk, row)
            for chunk, row in zip(plan.chunks, first_rows(plan))
            if isinstance(chunk, DraftedChunk) and firsts.get(chunk.seq) == chunk.drafts[0]
        ]
        draws = []
        for chunk, row in hopeful:
            request = self._request(chunk)
            for i in range(len(chunk.drafts)):
                draws.append((row + 1 + i, request.next_draw(chunk.seq, chunk.drafts[: i + 1])))
        drawn = iter(self.engine.runner.sample(logits, draws) if draws else [])
        for chunk, row in hopeful:
            said = [firsts[chunk.seq], *(next(drawn) for _ in chunk.drafts)]
            request = self._request(chunk)
            for i in range(1, 1 + num_right(said, chunk.drafts)):
                try:
                    tokens[request] += request.choose(
                        [Choice(chunk.seq, said[i], self._seen(request, logits, row + i))]
                    )
                except Exception:  # then the same is said again in the next step, and becomes an error
                    break
        return tokens

    def update(self, plan: StepPlan, tokens: dict[Request, list[NextToken]]) -> None:
        drafted = [chunk for chunk in plan.chunks if isinstance(chunk, DraftedChunk)]
        for chunk in drafted:
            chunk.seq.block_table.num_tokens = chunk.start + 1  # no draft is published in the prefix cache
        self._phases["update"](plan, tokens)
        for chunk in drafted:
            table, num_new = chunk.seq.block_table, len(chunk.seq.token_ids) - chunk.start - 1
            if table.blocks:  # none if the text has ended
                table.num_tokens = chunk.start + chunk.num_tokens
                shorten = getattr(table, "truncate", None) or partial(BlockTable.truncate, table)  # a reader's own
                shorten(chunk.start + num_new)
            self._count(chunk, max(0, num_new - 1))

    def stats(self) -> dict[str, Any]:
        counts = self.num_drafts, self.num_draft_tokens, sum(self.num_accepted), list(self.num_accepted)
        others: dict[str, Any] = self._phases["stats"]()
        return others | {metric.name: count for metric, count in zip(METRICS, counts)}

    def reset_stats(self) -> None:
        self._phases["reset_stats"]()
        self._begin_to_count()

    # ---- helpers

    def _begin_to_count(self) -> None:
        self.num_drafts = 0  # times that something was drafted for a text
        self.num_draft_tokens = 0
        self.num_accepted = [0] * self.num_tokens  # by position: the first draft of a text, its second, ...

    def _may_draft(self, chunk: Chunk) -> bool:
        is_at_its_end = chunk.num_tokens == 1 and chunk.receivers == [chunk.seq] and not chunk.group.is_sharing
        if not is_at_its_end or chunk.group.to_score or self._most(chunk) <= 0:
            return False
        return isinstance(self._request(chunk), SampledRequest) and self._pause(chunk.seq).is_over()

    def _most(self, chunk: Chunk) -> int:
        """How many drafts its text has room for, and one token after them."""
        return min(self.num_tokens, chunk.group.max_num_tokens - len(chunk.seq.token_ids) - 1)

    def _pause(self, seq: Sequence) -> Pause:
        return self._pauses.setdefault(seq, Pause())

    def _request(self, chunk: Chunk) -> Any:
        return self.engine.requests[chunk.group.group_id]

    def _seen(self, request: Request, logits: Any, row: int) -> Any:
        return self.engine.runner.rows(logits, {row})[row] if request.looks_at_logits else None  # [V]

    def _count(self, chunk: DraftedChunk, num_accepted: int) -> None:
        self._pause(chunk.seq).learn(num_accepted)
        self.num_drafts += 1
        self.num_draft_tokens += len(chunk.drafts)
        for place in range(num_accepted):
            self.num_accepted[place] += 1


def num_right(said: list[int], drafts: list[int]) -> int:
    """How many drafts are what was said in their place; said[i] comes after i drafts."""
    wrong = (i for i, (token, draft) in enumerate(zip(said, drafts)) if token != draft)
    return next(wrong, len(drafts))


def first_rows(plan: StepPlan) -> list[int]:
    """For each chunk, which row of the logits is its first."""
    rows, row = [], 0
    for chunk in plan.chunks:
        rows.append(row)
        row += len(chunk.rows)
    return rows


def read(config: Mapping[str, Any], make_llm: Callable[..., Any], vocab_size: int) -> tuple[int, Proposer]:
    """How many tokens to draft, and who does."""
    if not isinstance(config, Mapping) or not config or set(config) - OPTIONS:
        raise ConfigurationError(
            f"speculative_config is {shown(config)}; it must be such as "
            '{"method": "ngram", "num_speculative_tokens": 4}, and may have ' + ", ".join(sorted(OPTIONS)) + "."
        )
    model = config.get("model")
    method = config.get("method", "draft_model" if model else "ngram")
    if method not in ("ngram", "draft_model") or (method == "draft_model") != (model is not None):
        raise ConfigurationError(
            f"speculative_config has method {shown(method)} and model {shown(model)}; give method 'ngram', or a model."
        )
    num_tokens = config.get("num_speculative_tokens", 4)
    require_positive(num_speculative_tokens=num_tokens)
    if model is not None:
        return num_tokens, DraftModel(model, make_llm, vocab_size)
    longest = config.get("prompt_lookup_max", max(3, config.get("prompt_lookup_min", 1)))
    shortest = config.get("prompt_lookup_min", 1)
    require_positive(prompt_lookup_min=shortest, prompt_lookup_max=longest)
    if shortest > longest:
        raise ConfigurationError(f"prompt_lookup_min is {shortest}, more than prompt_lookup_max, {longest}.")
    return num_tokens, NGrams(shortest, longest)
