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

To guess costs little, and to compute what was guessed wrong costs more. So every text is guessed at, and drafts are
computed only where the last guess came true. Until then steps may overlap (overlap.py), as without drafts. An account
of time (account.py) tells whether that pays; while it does not, nobody is asked for a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

from minipage.engine.account import Accounts
from minipage.engine.drafts import read
from minipage.engine.engine import Engine
from minipage.engine.phases import stand_between
from minipage.engine.request import Choice, NextToken, Request
from minipage.engine.sampled import SampledRequest
from minipage.engine.stats import Metric
from minipage.memory import BlockTable
from minipage.sampling import NO_TOKEN, Draw
from minipage.scheduling import Chunk, Sequence, StepPlan

# Tokens of a step that has drafts. On a CPU, products of this many rows take little longer than of one, and much
# longer beyond; with more texts than this, nothing is drafted. A runner may have a `cheap_rows` of its own.
CHEAP_ROWS = 16
METRICS = (  # in `LLM.stats()` and /metrics, if there is speculation
    Metric("vllm:spec_decode_num_drafts", "counter", "times that tokens were drafted for a text"),
    Metric("vllm:spec_decode_num_draft_tokens", "counter", "tokens drafted"),
    Metric("vllm:spec_decode_num_accepted_tokens", "counter", "those of them that were right"),
    Metric("vllm:spec_decode_num_accepted_tokens_per_pos", "counter", "the same by position: first draft, second, ..."),
)


@dataclass(slots=True)
class DraftedChunk(Chunk):
    """The last token of a sequence, and drafts after it."""

    drafts: list[int]

    @property
    def token_ids(self) -> list[int]:
        return [self.seq.token_ids[-1], *self.drafts]

    @property
    def rows(self) -> list[tuple[int, list[Sequence]]]:
        return [(self.start + i, [] if i else [self.seq]) for i in range(self.num_tokens)]


class Speculation:
    """Drafts and verifies for one engine; made before anything else watches its phases.

    Args:
        config: vLLM's `speculative_config`; see `read` in drafts.py.
        make_llm: makes an engine for a draft model.

    Raises:
        ConfigurationError: the config makes no sense.
    """

    def __init__(self, engine: Engine, config: Mapping[str, Any], make_llm: Callable[..., Any]) -> None:
        self.engine = engine
        self.num_tokens, self.proposer, is_kept = read(config, make_llm, engine.model.architecture.vocab_size)
        self.accounts = Accounts(is_kept, lambda: getattr(engine.runner, "num_graphs", 0))  # of whether guesses pay
        self.most_rows = min(getattr(engine.runner, "cheap_rows", CHEAP_ROWS), engine.scheduler.max_num_batched_tokens)
        self.is_due = False  # whether the next step should have drafts; until then steps may overlap (overlap.py)
        # Of each text, what was guessed last: the place of a token, and the token.
        self._guesses: WeakKeyDictionary[Sequence, tuple[int, int]] = WeakKeyDictionary()
        self._phases = stand_between(engine, self, "schedule", "sample", "update", "stats", "reset_stats")
        self.reset_stats()

    def schedule(self) -> StepPlan:
        """Guess at all texts, if that pays; drafts are only for those whose last guess was right."""
        may_draft = self.is_due or not hasattr(self.engine, "overlap")
        self.accounts.begin(is_alone=may_draft)  # a step that may have drafts does not overlap
        plan: StepPlan = self._phases["schedule"]()
        room = self.most_rows - len(plan.chunks) if self.accounts.may_ask(plan) else 0
        counts = {i: n for i, chunk in enumerate(plan.chunks) if room > 0 and (n := self._num_wanted(chunk)) > 0}
        # Without the placeholders of steps that overlap:
        texts = [ids[:-1] if (ids := plan.chunks[i].seq.token_ids)[-1] < 0 else ids for i in counts]
        guesses = zip(counts, texts, self.proposer.propose(texts, list(counts.values())) if texts else [])
        right = {i: drafts for i, text, drafts in guesses if self._was_right(plan.chunks[i].seq, text, drafts)}
        for num_left, i in zip(range(len(right), 0, -1), right if may_draft else ()):
            chunk, table = plan.chunks[i], plan.chunks[i].seq.block_table
            drafts = right[i][: -(-room // num_left)]  # for each as many: the first ones are right most often
            while table.blocks_to_allocate(len(drafts)) > self.engine.block_pool.num_free:
                drafts = drafts[:-1]  # nobody is preempted for a guess
            if drafts:
                plan.copies += table.append(len(drafts))
                plan.chunks[i] = DraftedChunk(chunk.group, chunk.seq, chunk.start, 1 + len(drafts), drafts)
                room -= len(drafts)
        self.is_due = 0 < len(plan.chunks) <= 4 * len(right)
        return plan

    def sample(self, plan: StepPlan, logits: Any) -> dict[Request, list[NextToken]]:
        """As always; and whose first draft is what was said gets what is drawn after it, and so on."""
        tokens: dict[Request, list[NextToken]] = self._phases["sample"](plan, logits)
        said = {token.seq: token.token_id for its_tokens in tokens.values() for token in its_tokens}
        rows = accumulate((len(chunk.rows) for chunk in plan.chunks), initial=0)  # the first one of each chunk
        right: list[tuple[DraftedChunk, Any, int]] = []
        draws: list[tuple[int, Draw]] = []
        for chunk, row in zip(plan.chunks, rows):
            if isinstance(chunk, DraftedChunk) and chunk.drafts[0] == said.get(chunk.seq):
                request: Any = self.engine.requests[chunk.group.group_id]
                right.append((chunk, request, row))
                draws += [(row + i, request.next_draw(chunk.seq, chunk.drafts[:i])) for i in range(1, chunk.num_tokens)]
        drawn = iter(self.engine.runner.sample(logits, draws) if draws else [])
        for chunk, request, row in right:
            after_drafts = [next(drawn) for _ in chunk.drafts]  # after the first, the first two, ...
            with suppress(Exception):  # then the same is said again in the next step, and becomes an error
                for i, token in enumerate(after_drafts, 1):
                    seen = self.engine.runner.rows(logits, {row + i} if request.looks_at_logits else ())
                    tokens[request] += request.choose([Choice(chunk.seq, token, seen.get(row + i), chunk.drafts[:i])])
                    if chunk.drafts[i : i + 1] != [token]:
                        break
        return tokens

    def update(self, plan: StepPlan, tokens: dict[Request, list[NextToken]]) -> None:
        drafted = [chunk for chunk in plan.chunks if isinstance(chunk, DraftedChunk)]
        for chunk in drafted:
            chunk.seq.block_table.num_tokens = chunk.start + 1  # no draft is published in the prefix cache
        self._phases["update"](plan, tokens)
        self.accounts.end(plan, sum(map(len, tokens.values())))
        for chunk in drafted:
            table, num_new = chunk.seq.block_table, len(chunk.seq.token_ids) - chunk.start - 1
            if table.blocks:  # none if the text has ended
                table.num_tokens = chunk.start + chunk.num_tokens
                # A reader's own table may have no `truncate`.
                getattr(type(table), "truncate", BlockTable.truncate)(table, chunk.start + num_new)
            self.num_drafts += 1
            self.num_draft_tokens += len(chunk.drafts)
            for place in range(num_new - 1):
                self.num_accepted[place] += 1

    def stats(self) -> dict[str, Any]:
        counts = self.num_drafts, self.num_draft_tokens, sum(self.num_accepted), list(self.num_accepted)
        return {**self._phases["stats"](), **{metric.name: count for metric, count in zip(METRICS, counts)}}

    def reset_stats(self) -> None:
        self._phases["reset_stats"]()
        self.num_drafts = self.num_draft_tokens = 0  # times that something was drafted for a text, and tokens drafted
        # By position: the first draft of a text, its second, ...
        self.num_accepted = [0] * min(self.num_tokens, self.engine._intake.max_model_len)

    # ---- helpers

    def _was_right(self, seq: Sequence, text: list[int], drafts: list[int]) -> bool:
        """Whether there are drafts, and the last guess came true; and note what is guessed now."""
        place, token_id = self._guesses.get(seq, (0, text[0]))
        self._guesses[seq] = len(text), drafts[0] if drafts else NO_TOKEN
        return bool(drafts) and text[place : place + 1] == [token_id]

    def _num_wanted(self, chunk: Chunk) -> int:
        """How many drafts: as many as its text has room for, and one token after them. None but after its last token,
        if that is all it computes."""
        seq, group = chunk.seq, chunk.group
        is_last = chunk.num_tokens == 1 and chunk.receivers == [seq] and not group.is_sharing and not group.to_score
        is_sampled = isinstance(self.engine.requests[group.group_id], SampledRequest)
        return min(self.num_tokens, group.max_num_tokens - len(seq.token_ids) - 1) if is_last and is_sampled else 0
