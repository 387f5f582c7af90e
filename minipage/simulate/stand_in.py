"""What stands in for a model, so that the real engine runs without one, on a clock of its own.

    Engine ── schedule ─▶ the real Scheduler, tables, caches          StandInRunner.forward: nothing is computed;
           ── forward  ─▶ StandInRunner                               the clock goes on by what it would take
           ── sample   ─▶ every text has its predetermined length

The engine's loop, its scheduler, block tables, prefix cache and pools are the real ones, so every plan is what the
engine would do. What differs: no logits, nothing for anybody to read, and times on a virtual clock. Where steps
overlap, the engine's own `Overlap` plans a step before the tokens of the last one are seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minipage.engine.beams import BeamRequest
from minipage.engine.engine import Engine, NextTokens
from minipage.engine.overlap import Overlap
from minipage.engine.request import Choice, NextToken, Request, RequestMetrics
from minipage.errors import InvalidRequestError
from minipage.memory import BlockPool, BlockTable
from minipage.sampling import Draw, SamplingParams
from minipage.sampling.sampler import log_softmax
from minipage.scheduling import Scheduler, Sequence, SequenceGroup, StepPlan
from minipage.simulate.cost import CostModel, Work
from minipage.simulate.workload import Arrival
from minipage.worker.runner import ModelRunner

TOKEN = 1  # that stands for all; with prefixes, prompts have numbers of their own
PREFIX_TOKEN = 0
# How much likelier a beam's best token is than the next one, in nats, on average. The larger, the longer beams go their
# own ways. One number, chosen once for the bars of beam search in the paper's Figure 15; see docs/paper.md.
SPREAD = 6.5


class Clock:
    """Seconds since the simulation began."""

    def __init__(self) -> None:
        self.now = 0.0


class StandInRunner(ModelRunner):
    """Computes nothing: it says how long a step would have taken.

    `on_step(plan, work, seconds)` is told of every step.
    """

    model: Any = None
    kv_cache: Any = None
    swap_cache: Any = None

    def __init__(self, cost: CostModel, clock: Clock, on_step: Callable[[StepPlan, Work, float], object]) -> None:
        self.cost = cost
        self.clock = clock
        self.on_step = on_step
        self.shares = cost.sizes.shares
        self.free_at = 0.0  # when the device has computed all that was launched

    def allocate(self, block_pool: BlockPool, swap_pool: BlockPool | None) -> None:
        """There is nothing to be kept."""
        self.pool = block_pool if type(block_pool) is BlockPool else None  # in which blocks may be shared

    def copy(self, plan: StepPlan) -> None:
        num_swaps = len(plan.swap_out) + len(plan.swap_in)
        if num_swaps:
            self.clock.now += self.cost.swaps(num_swaps)
        if plan.copies:
            self.clock.now += self.cost.copies(len(plan.copies))

    def forward(self, plan: StepPlan) -> Any:
        work = Work.of(plan, self.pool, self.shares)
        seconds = self.cost.host(work) + self.cost.device(work)
        self.clock.now += seconds
        self.on_step(plan, work, seconds)
        return None  # no logits

    def launch(self, plan: StepPlan, draws: list[Any]) -> Callable[[], list[int]]:
        """The same where steps overlap: the clock is the host's, who plans and launches; the device goes on by itself.

        What is returned waits for it, and then knows the tokens.
        """
        begin = max(self.clock.now, self.free_at)
        self.copy(plan)
        if plan.chunks:
            work = Work.of(plan, self.pool, self.shares)
            self.clock.now += self.cost.host(work)
            self.free_at = max(begin + self.cost.device(work), self.clock.now)
            self.on_step(plan, work, self.free_at - begin)
        end = self.free_at

        def wait() -> list[int]:
            self.clock.now = max(self.clock.now, end)
            return [TOKEN] * len(draws)

        return wait


class StandIn(Request):
    """A request of `n` texts of a predetermined length, on the virtual clock."""

    def __init__(self, arrival: Arrival, group: SequenceGroup, clock: Clock, params: SamplingParams) -> None:
        self.arrival = arrival
        self.params = params
        self.group = group
        self.clock = clock
        self.seed = 0
        self.ended_by: str | None = None
        self.error: str | None = None
        self.final_len = arrival.num_prompt_tokens + arrival.num_output_tokens
        self.first_scheduled_time: float | None = None
        self.first_token_time: float | None = None
        self.finished_time: float | None = None

    @property
    def metrics(self) -> RequestMetrics:
        return RequestMetrics(
            self.arrival.time, self.first_scheduled_time, self.first_token_time, self.finished_time,
            self.group.num_preemptions,
        )  # fmt: skip

    def started(self) -> None:
        if self.first_scheduled_time is None:
            self.first_scheduled_time = self.clock.now

    def next_draw(self, seq: Sequence) -> Draw:
        return Draw(self.params, 0.0)

    def choose(self, choices: list[Choice]) -> list[NextToken]:
        return [NextToken(choice.seq, TOKEN, None) for choice in choices]

    def take(self, tokens: list[NextToken]) -> tuple[list[NextToken], list[Sequence]]:
        if self.first_token_time is None:
            self.first_token_time = self.clock.now
        for token in tokens:
            token.seq.token_ids.append(token.token_id)
        done = [token.seq for token in tokens if len(token.seq.token_ids) >= self.final_len]
        if done and len(done) == len(self.group.sequences):
            self._finish()
        return tokens, done

    def restore(self) -> None:
        if self.ended_by:
            self._finish()

    def _finish(self) -> None:
        self.finished, self.finished_time = True, self.clock.now


class StandInBeams(BeamRequest):
    """A beam search whose candidates are drawn at random. Which of them survive, the real search decides."""

    def __init__(self, arrival: Arrival, group: SequenceGroup, clock: Clock, params: SamplingParams, seed: int) -> None:
        self.clock = clock
        self.arrival = arrival
        super().__init__(None, params, group, frozenset(), None)
        self._generator = np.random.default_rng(seed)
        self._num_candidates = 2 * group.max_num_seqs

    def choose(self, choices: list[Choice]) -> list[NextToken]:
        drawn = self._generator.exponential(SPREAD, (len(choices), self._num_candidates))  # [num_beams, 2 * width]
        logprobs = log_softmax(drawn)  # [num_beams, 2 * width]
        return super().choose([choice._replace(logits=row) for choice, row in zip(choices, logprobs)])

    def started(self) -> None:
        self._note("first_scheduled_time")

    def _note(self, event: str) -> None:
        if event not in self._times:
            self.finished = self.finished or event == "finished_time"
            self._times[event] = self.arrival.time if event == "arrival_time" else self.clock.now


class StandInIntake:
    """Has the face of Intake: from an Arrival to a request.

    make_table: of a request: an empty table for one of its sequences.
    with_content: prompts have tokens of their own, for a prefix cache to tell apart; otherwise all are alike.
    group: what its sequences are scheduled as.
    """

    def __init__(
        self,
        clock: Clock,
        max_model_len: int,
        make_table: Callable[[Arrival], Callable[[], BlockTable]],
        with_content: bool = False,
        group: type[SequenceGroup] = SequenceGroup,
    ) -> None:
        self.clock = clock
        self.group = group
        self.max_model_len = max_model_len
        self.make_table = make_table
        self.with_content = with_content
        self._params = SamplingParams(temperature=0, seed=0)  # of all requests: nothing is drawn
        self._num_made = 0

    def make_request(
        self, request_id: str, prompt: Any, params: SamplingParams | None, priority: int = 0, cache_salt: str = ""
    ) -> Request:
        arrival: Arrival = prompt
        longest = arrival.num_prompt_tokens + arrival.num_output_tokens
        if longest > self.max_model_len:
            raise InvalidRequestError(
                f"a request of {longest:,} tokens is longer than max_model_len, {self.max_model_len:,}."
            )
        self._num_made += 1
        make_table = self.make_table(arrival)
        token_ids = self._token_ids(arrival)
        num_at_first = 1 if arrival.is_beam else arrival.n
        names = [request_id] if num_at_first == 1 else [f"{request_id}.{i}" for i in range(num_at_first)]
        sequences = [Sequence(name, token_ids, make_table()) for name in names]
        group = self.group(request_id, sequences, longest, arrival.n, priority, cache_salt)
        if not arrival.is_beam:
            return StandIn(arrival, group, self.clock, self._params)
        width = SamplingParams(beam_width=arrival.n, max_tokens=arrival.num_output_tokens, temperature=0, seed=0)
        return StandInBeams(arrival, group, self.clock, width, self._num_made)

    def _token_ids(self, arrival: Arrival) -> list[int]:
        own = self._num_made + 1 if self.with_content else TOKEN
        return [PREFIX_TOKEN] * arrival.prefix + [own] * (arrival.num_prompt_tokens - arrival.prefix)


class SimulatedEngine(Engine):
    """The engine, with requests that know how long they get. `tally` counts instead of its Stats."""

    def __init__(self, runner: StandInRunner, scheduler: Scheduler, intake: StandInIntake, tally: Any) -> None:
        super().__init__(runner, scheduler, intake, tally, seed=0)  # type: ignore[arg-type]

    def advance(self) -> None:
        """A step; nobody reads the texts."""
        self._changes.make(self._step, self._mend)
        self._news.clear()

    def sample(self, plan: StepPlan, logits: Any) -> NextTokens:
        tokens: NextTokens = {}
        for chunk in plan.chunks:
            if chunk.start + chunk.num_tokens < len(chunk.seq.token_ids):
                continue  # the prompt goes on
            group = chunk.group
            request = self.requests[group.group_id]
            if group.max_num_seqs == 1:  # nearly always
                tokens[request] = [NextToken(chunk.seq, TOKEN, None)]
            else:
                tokens.setdefault(request, []).extend(NextToken(seq, TOKEN, None) for seq in chunk.receivers)
        for request, its_tokens in tokens.items():
            if isinstance(request, StandInBeams):
                tokens[request] = request.choose([Choice(token.seq, None, None) for token in its_tokens])
        return tokens


class SimulatedOverlap(Overlap):
    """The engine's real overlap of steps. Beams are not suited to it, as on the engine."""

    def _may_overlap(self) -> bool:
        return not any(isinstance(request, BeamRequest) for request in self.engine.requests.values())


class Histogram:
    """Numbers above 0 in buckets that are 1 % wide, so that a million of them take no more memory than a hundred."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.count = 0
        self.sum = 0.0

    def add(self, value: float) -> None:
        bucket = math.floor(math.log(max(value, 1e-9)) / math.log(1.01))
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.count += 1
        self.sum += value

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else math.nan

    def quantile(self, share: float) -> float:
        """The value that `share` of the numbers do not exceed, to 1 %."""
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= share * self.count:
                return float(1.01 ** (bucket + 0.5))
        return math.nan
