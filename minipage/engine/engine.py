"""The engine: requests in, tokens out, one step after another.

    add_request ─▶ waiting ─▶ [ schedule ─▶ copy ─▶ forward ─▶ sample ─▶ update ] ─▶ outputs
                                   ▲                                        │
                                   └───────── while anything is left ───────┘

It is made of parts that are handed in: `build.py` makes them from options, and `llm.py` gives the whole a face.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from minipage.engine.intake import Intake, saying_which
from minipage.engine.prompts import Prompt
from minipage.engine.recovery import Changes
from minipage.engine.request import Choice, NextToken, Request, RequestOutput
from minipage.errors import InvalidRequestError, shown
from minipage.sampling import SamplingParams, as_tuple
from minipage.scheduling import Scheduler, Sequence, StepPlan
from minipage.scheduling.scheduler import claim
from minipage.worker.runner import ModelRunner

if TYPE_CHECKING:
    from minipage.engine.stats import Stats

NextTokens: TypeAlias = dict[Request, list[NextToken]]  # what each request chose in one step


class Engine:
    """Serves any number of requests at once from paged memory.

    Any thread may use it. They take turns, step by step: one waits while another's step runs, and what several have
    asked for is computed together. Whatever raises, Ctrl-C included, leaves the engine whole: see recovery.py.

    Args:
        runner: computes; the blocks' memory is made here.
        scheduler: decides; it serves this engine alone from now on.
        intake: reads what users hand in.
        stats: counts what is done, for whoever asks.
        seed: makes the requests that have no seed of their own repeatable, too.
    """

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, intake: Intake, stats: Stats, seed: int | None = None
    ) -> None:
        claim(scheduler, self, "scheduler")
        self.runner = runner
        self.scheduler = scheduler
        self.block_pool = scheduler.block_pool
        self.model = runner.model
        runner.allocate(scheduler.block_pool, scheduler.swap_pool)
        self.kv_cache, self.swap_cache = runner.kv_cache, runner.swap_cache
        self.requests: dict[str, Request] = {}  # those not finished yet, by request id
        self._intake = intake
        self._seeds = np.random.default_rng(seed)
        self._ids = count()
        self._news: dict[Request, None] = {}  # requests with news that nobody has seen yet, in order
        self._changes = Changes()
        self._stats = stats
        self._abandoned: list[Request] = []  # nobody waits for them any more; they are ended with the next change

    def __repr__(self) -> str:
        pool = self.block_pool
        return (
            f"<{type(self).__name__}: {len(self.requests)} requests unfinished, "
            f"{pool.num_free} of {pool.num_blocks} blocks of {pool.block_size} tokens free>"
        )

    # ---- requests in, results out

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> str:
        """Queue a request for `step` and return its id.

        Args:
            priority: the smaller, the more urgent, with policy="priority".
            cache_salt: prefixes are shared only between requests of the same salt.

        Raises:
            InvalidRequestError: it cannot be served; nothing else is affected.
        """
        with self._changes.lock:
            request_id = self._free_id() if request_id is None else request_id
            request = self._intake.make_request(request_id, prompt, params, priority, cache_salt)
            self._queue([request])
            return request.request_id

    def read_prompt(self, prompt: Prompt, params: SamplingParams | None = None) -> Prompt:
        """The prompt with its token ids, as `add_request` would read it; this waits for no step, and none waits for it.

        Args:
            params: what these ask for is compiled on the way, so that `add_request` need not.

        Raises:
            InvalidRequestError: it cannot be served.
        """
        if isinstance(params, SamplingParams):
            self._intake.grammar(params)
        return self._intake.read(prompt)

    def abort(self, request_id: str | Iterable[str], reason: str = "abort") -> bool:
        """Stop a request, or several, whatever they are doing; False if all are unknown or finished already.

        Args:
            request_id: one, or a list of them.
            reason: their finish_reason; "error" if something failed and what they computed should not be found again.

        Raises:
            InvalidRequestError: one of these is no request_id; then none is stopped.
        """
        names = (request_id,) if isinstance(request_id, str) else as_tuple(request_id)
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise InvalidRequestError(f"request_id is {shown(request_id)}; it must be a string, or a list of strings.")

        def change() -> bool:
            found = [self.requests[name] for name in dict.fromkeys(names) if name in self.requests]
            for request in found:
                self._end(request, reason)
            return bool(found)

        return self._changes.make(change, self._mend)

    def reset_prefix_cache(self) -> None:
        """Forget all prefixes, for example because the weights were changed. Whatever is running goes on."""
        with self._changes.lock:
            if self.scheduler.prefix_cache:
                self.scheduler.prefix_cache.reset()

    def stats(self) -> dict[str, Any]:
        """The numbers of a server's /metrics, under the same names (see stats.py); this waits for no step."""
        return self._stats.look(self.scheduler)

    def reset_stats(self) -> None:
        """Begin to count anew."""
        self._stats.reset(self.scheduler)

    def has_unfinished_requests(self) -> bool:
        """Whether another `step` is worth while: something is still to be computed, or to be told."""
        with self._changes.lock:
            return bool(self.requests) or not all(request.is_claimed for request in self._news)

    def step(self) -> list[RequestOutput]:
        """Run one step and return what is new of every request that got a token in it, finished or was aborted."""
        with self._changes.lock:
            if self.requests or self.runner.lost is None:
                self._changes.make(self._step, self._mend)
            return self._take_news()

    # ---- a step and its five phases, which are public so that a recorder can watch them

    def _step(self) -> None:
        self._end_abandoned()
        plan = self.schedule()
        self.copy(plan)
        if plan.chunks:  # a step may only swap, or preempt
            logits = self.forward(plan)
            tokens = self.sample(plan, logits)
            self.update(plan, tokens)
        self._stats.count_step(plan)

    def schedule(self) -> StepPlan:
        """Choose the tokens of this step and give each a slot."""
        plan = self.scheduler.schedule()
        for chunk in [chunk for chunk in plan.chunks if chunk.start < chunk.seq.num_prompt_tokens]:
            self.requests[chunk.group.group_id].started()
        return plan

    def copy(self, plan: StepPlan) -> None:
        """Move whole blocks before anything is written: save and restore what is swapped, and copy on write."""
        self.runner.copy(plan)

    def forward(self, plan: StepPlan) -> np.ndarray:
        """Run the model; [num_sampled, vocab_size] logits: for each chunk, in their order, the `rows` that it needs."""
        return self.runner.forward(plan)

    def sample(self, plan: StepPlan, logits: np.ndarray) -> NextTokens:
        """Let every request choose its next tokens; logits: [num_sampled, vocab_size]."""
        scoring, asking = self._who_wants(plan)
        draws = {seq: (row, draw) for request, seq, row in asking if (draw := request.next_draw(seq))}
        drawn = dict(zip(draws, self.runner.sample(logits, list(draws.values()))))  # {sequence: token id}
        looked_at = {row for request, _, row in asking if request.looks_at_logits}
        seen = self.runner.rows(logits, looked_at | {row for _, _, row in scoring})  # {row: its logits [V]}
        for request, position, row in scoring:
            request.score(position, seen[row])
        choices: dict[Request, list[Choice]] = {}
        for request, seq, row in asking:
            choices.setdefault(request, []).append(Choice(seq, drawn.get(seq), seen.get(row)))
        return {request: request.choose_or_fail(its_choices) for request, its_choices in choices.items()}

    def update(self, plan: StepPlan, tokens: NextTokens) -> None:
        """Give the sequences their tokens; those that are finished give their blocks back."""
        for request in [request for request in tokens if request.error]:
            self._end(request, "error")
            del tokens[request]
        self.scheduler.update(plan)
        for request, its_tokens in tokens.items():
            tokens[request], done = request.take(its_tokens)  # from now on those taken: none after an end
            for seq in done:
                self.scheduler.finish(request.group, seq)
        self._stats.count_tokens(tokens)
        self._tell(tokens)

    # ---- helpers

    def _who_wants(self, plan: StepPlan) -> tuple[list[tuple[Request, int, int]], list[tuple[Request, Sequence, int]]]:
        """Who wants which row of a step's logits: to know how likely its prompt is, (request, position, row); or to
        choose a token, (request, sequence, row)."""
        row_numbers, scoring, asking = count(), [], []
        for chunk in plan.chunks:
            request = self.requests[chunk.group.group_id]
            for (position, receivers), row in zip(chunk.rows, row_numbers):  # in this order: it skips no number
                asking += [(request, seq, row) for seq in receivers]
                if position in chunk.group.to_score:
                    scoring.append((request, position, row))
        return scoring, asking

    def _mend(self) -> None:
        """A change failed half way: all is worked out anew from the requests and the tokens of their sequences."""
        for request in list(self.requests.values()):
            request.restore()
            if request.finished:
                self._tell([request])
        self.scheduler.groups = {request.group: None for request in self.requests.values()}
        self.scheduler.recompute_all()
        for request in list(self.requests.values()) if self.runner.lost else ():
            request.error = self.runner.lost
            self._end(request, "error")

    def _end(self, request: Request, reason: str) -> None:
        """End a request that has not come to its own end, "abort" or "error", and give its blocks back."""
        cache = self.scheduler.prefix_cache
        if reason == "error" and cache:  # its K and V may be no numbers either, and nobody should find them
            for block in {block for seq in request.group.sequences for block in seq.block_table}:
                cache.forget(block)
        self.scheduler.remove(request.group)
        request.end(reason)
        self._tell([request])

    def _tell(self, requests: Iterable[Request]) -> None:
        """There is news of these requests; after the last of it the engine forgets a request."""
        self._news |= dict.fromkeys(requests)
        for request in [request for request in requests if request.finished]:
            del self.requests[request.request_id]
            self._stats.count_request(request)

    def _take_news(self) -> list[RequestOutput]:
        """What nobody has seen yet, also of requests that were aborted since the last step."""
        # To decode a text is a change, too: if it fails half way, the text is made anew.
        outputs = self._changes.make(lambda: [each.output() for each in self._news if not each.is_claimed], self._mend)
        self._news = {request: None for request in self._news if request.is_claimed}
        return outputs

    def _free_id(self) -> str:
        return next(name for name in map(str, self._ids) if name not in self.requests)

    def _queue(self, requests: list[Request]) -> None:
        """Let the scheduler know of new requests: of all, or if anything raises, of none."""
        try:
            refusal = self._changes.make(lambda: self._offer(requests), self._mend)
            if refusal:
                raise refusal
        except BaseException:
            self._withdraw(requests)
            raise

    def _offer(self, requests: list[Request]) -> InvalidRequestError | None:
        self.runner.check_alive()
        self._end_abandoned()
        for number, request in enumerate(requests):
            try:
                with saying_which(number, len(requests)):
                    if (known := request.request_id) in self.requests:
                        raise InvalidRequestError(f"there is a request {known!r} already; choose another request_id.")
                    self.scheduler.add(request.group)
            except InvalidRequestError as refusal:  # as it well may, and nothing has changed
                return refusal
            self.requests[request.request_id] = request
        for request in requests:
            if request.params.seed is None:
                request.seed = int(self._seeds.integers(2**63))
        return None

    def _withdraw(self, requests: list[Request]) -> None:
        """Nobody waits for these requests any more.

        An iterator may be closed by the garbage collector, in the middle of a step; then the next one sees to it.
        """
        self._abandoned += requests
        if not self._changes.is_being_made:
            self._changes.make(self._end_abandoned, self._mend)

    def _end_abandoned(self) -> None:
        for request in self._abandoned.copy():
            if self.requests.get(request.request_id) is request:
                self._end(request, "abort")
            self._news.pop(request, None)
            self._abandoned.remove(request)
