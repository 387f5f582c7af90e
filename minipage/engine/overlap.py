"""Overlap: while the device computes a step, the host already plans the next one.

    plain     host     plan 1            update 1 plan 2            update 2 plan 3
              device         ░░ step 1 ░░               ░░ step 2 ░░               ░░ step 3 ...
    overlap   host     plan 1 plan 2    update 1 plan 3   update 2 plan 4
              device         ░░ step 1 ░░░░ step 2 ░░░░░░ step 3 ░░░░░

A plan needs to know who runs and where K and V go, but not what was said. So step 2 is planned and launched with a
placeholder for each token that step 1 has not drawn yet; the device, which draws it, puts it there. What the host sees
one step late is how a text ends. A text that has ended by a stop token or a stop string is in the next step already:
what is drawn for it there is surplus, and dropped. That it ends by its length is known before, and there is no surplus.

    token_ids    To  be  or  -3        -3: what the third draw of the step before will say, ~2 in Python

Scheduler, tables and kernels know nothing of it: `Overlap` takes the place of the engine's `_step`. It makes plain
steps by itself while a recorder watches the phases, while speculation has drafts (which follow a known token), and
while there is a request whose next step depends on more than tokens: beams, penalties, structured outputs, log
probabilities; also with several ranks on CPUs, or a runner with a `forward` of its own. vLLM calls this async
scheduling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from minipage.engine.engine import Engine
from minipage.engine.phases import those_between
from minipage.engine.request import Choice, NextToken, Request
from minipage.engine.sampled import SampledRequest
from minipage.sampling import NO_TOKEN, Draw
from minipage.scheduling import GroupStatus, Sequence, SequenceGroup, StepPlan
from minipage.worker.gc_off import gc_off
from minipage.worker.in_turn import InTurn, Launch, may_overlap

PHASES = {"schedule", "copy", "forward", "sample", "update"}


@dataclass
class Flying:
    """A step that was launched, and whose tokens the host has not seen."""

    plan: StepPlan
    asking: list[tuple[Request, Sequence, int]]  # who is given a token, in the order of the draws
    draws: list[tuple[int, Draw]]
    is_greedy: bool  # all of them
    wait: Callable[[], list[int | None]]

    def is_repeated_by(self, plan: StepPlan) -> bool:
        """Whether a plan gives the same sequences a token, from logits in the same rows: nearly always."""
        seqs = [seq for _, seq, _ in self.asking]
        return bool(seqs) and seqs == [chunk.seq for chunk in plan.chunks] and self.asking[-1][2] == len(seqs) - 1


class Overlap:
    """Overlaps the steps of one engine; made after everything else that stands between the engine and its phases."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.num_surplus = 0  # tokens that were drawn for texts that had ended
        self._launch: Launch = getattr(engine.runner, "launch", None) or InTurn(engine.runner).launch
        self._flying: Flying | None = None
        self._at_their_end: list[SequenceGroup] = []  # those that get no further chunk, while the next step is planned
        self._known: set[Request] = set()
        self._unsuited: set[Request] = set()
        self._plain_step, self._plain_mend = engine._step, engine._mend
        engine._step, engine._mend = self.step, self.mend  # type: ignore[method-assign]

    @gc_off()
    def step(self) -> None:
        """Launch the next step, and then bring the one before to its end."""
        self.engine._end_abandoned()
        if self._flying is None:
            if not self._may_overlap():
                return self._plain_step()
            self._flying = self._begin()
        following = self._begin() if self._may_overlap() else None  # asked anew: drafts may be due by now
        self._land()
        if following and not self.engine.requests:  # it is for nobody
            self.num_surplus += len(following.asking)
            following = None
        self._flying = following

    def land(self) -> None:
        """Bring what was launched to its end: who begins to watch then sees whole steps."""
        self.engine._changes.make(self._land, self.mend)

    def _land(self) -> None:
        if self._flying is not None:
            self._end(self._flying)
        self._flying = None

    def mend(self) -> None:
        """Something failed, somewhere: what was launched counts for nothing, and is computed again."""
        self._take_back()
        self._flying = None
        for request in self._known:
            request.error = None  # of a token that nobody got
        self._plain_mend()

    # ---- a step in two halves

    def _begin(self) -> Flying | None:
        """Plan a step and launch it, or nothing, if there is nothing to do before the host has seen more tokens."""
        with self._placeholders():
            plan = self.engine.schedule()
            if plan == StepPlan():
                return None
            before = self._flying if self._flying and self._flying.is_repeated_by(plan) else None
            if before and before.is_greedy:  # nothing about its draws depends on the place
                return replace(before, plan=plan, wait=self._launch(plan, before.draws))
            asking = before.asking if before else self.engine._who_wants(plan)[1]
            draws: Any = [(row, request.next_draw(seq)) for request, seq, row in asking]
            is_greedy = all(draw.params.temperature == 0 for _, draw in draws)
            return Flying(plan, asking, draws, is_greedy, self._launch(plan, draws))

    def _end(self, step: Flying) -> None:
        """Wait for the tokens of a step, and give them to those who are still there."""
        tokens: dict[Request, list[NextToken]] = {}
        for (request, seq, _), token_id in zip(step.asking, step.wait()):
            if seq.finished:
                self.num_surplus += 1
            elif token_id is None:
                self._unsuited.add(request)
            elif token_id == NO_TOKEN:
                tokens[request] = request.choose_or_fail([Choice(seq, token_id, None)])  # nothing; and it knows why
            else:
                tokens.setdefault(request, []).append(NextToken(seq, token_id, None))
        for request in self._unsuited & {request for request, *_ in step.asking} if self._unsuited else ():
            tokens.pop(request, None)
            self._compute_again(request.group)
        with (self._tables_after if self.engine.scheduler.prefix_cache else nullcontext)(step.plan) as plan:
            self.engine.update(plan, tokens)
        self.engine._stats.count_step(step.plan)

    @contextmanager
    def _tables_after(self, plan: StepPlan) -> Iterator[StepPlan]:
        """Within this block tables are as this step has left them: only what is written is published.

        Yields its chunks, without those of texts that have ended or were preempted meanwhile.
        """
        stops = [(chunk, chunk.seq.block_table, chunk.start + chunk.num_tokens) for chunk in plan.chunks]
        pool = self.engine.block_pool
        here = [(*each, each[1].num_tokens) for each in stops if each[1].pool is pool and each[1].num_tokens >= each[2]]
        for _, table, stop, _ in here:
            table.num_tokens = stop
        yield StepPlan(chunks=[chunk for chunk, *_ in here])
        for _, table, _, num_tokens in here:
            if table.num_tokens:  # and not if the text has ended now
                table.num_tokens = num_tokens

    def _compute_again(self, group: SequenceGroup) -> None:
        """As if it had been preempted; it is unsuited now, so that it will be drawn with the host's help."""
        scheduler = self.engine.scheduler
        scheduler._dequeue(group)
        group.restart(scheduler.block_pool)
        scheduler._enqueue(group, GroupStatus.WAITING)

    # ---- helpers

    @contextmanager
    def _placeholders(self) -> Iterator[None]:
        """Within this block the tokens that are being drawn are there, as ~number of their draw."""
        try:
            for number, (request, seq, _) in enumerate(self._flying.asking if self._flying else ()):
                if not seq.finished:
                    group, token_ids = request.group, seq.token_ids
                    if group.is_sharing:  # its prompt is in this step, and what is launched now comes after it
                        group.fork_followers()
                    token_ids.append(~number)
                    if len(token_ids) >= group.max_num_tokens:  # this token is its last
                        self._at_their_end.append(group)
                        vars(group)["next_chunks"] = lambda budget: []
            yield
        finally:
            self._take_back()

    def _take_back(self) -> None:
        for _, seq, _ in self._flying.asking if self._flying else ():
            if seq.token_ids[-1] < 0:
                seq.token_ids.pop()
        while self._at_their_end:
            vars(self._at_their_end[-1]).pop("next_chunks", None)
            self._at_their_end.pop()

    def _may_overlap(self) -> bool:
        requests = set(self.engine.requests.values())
        self._unsuited &= requests
        self._unsuited |= {request for request in requests - self._known if not is_suited(request)}
        self._known = requests
        is_due = any(getattr(part, "is_due", True) for part in those_between(self.engine, PHASES))
        return may_overlap(self.engine.runner) and not self._unsuited and not is_due


def is_suited(request: Request) -> bool:
    """Whether its tokens can be drawn without a look of the host at the ones before, or at logits."""
    is_plain = isinstance(request, SampledRequest) and request.processors is None
    return is_plain and not request.looks_at_logits and request.params.prompt_logprobs is None
