"""Do guesses pay? An account of time: what steps with guesses took, beside what their tokens would take without.

Whether a step with drafts is quicker than the plain steps that it saves depends on all there is: the device, the model,
how many texts are in the batch, how often guesses are right, who guesses, and whether plain steps overlap. So nothing
of it is known here, and nobody has to measure it before; the clock is looked at.

    plain steps    10 ms each, of 1 text                                  every step may take 1 % longer:   +0.1 ms
    a guess        all right: 4 tokens in 14 ms, where 4 steps take 40                                     +26.1 ms
                   all wrong: 1 token in 14 ms                                                              -3.9 ms

Guesses are asked for while a wrong one would leave no more than the time of two plain steps lost; otherwise not, until
the 1 % has made up for it. So n steps of text that nobody can guess lose at most the time of n / 100 + 2 plain ones, or
of n / 100 and one guess, if that takes longer: of 100 tokens 3 %, of many 1 %. The first two guesses of all are not
booked: things are compiled and loaded then. A guesser that has become better is found out. There is an account for each
number of texts, because with each a plain step takes another time. What is said does not depend on it.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Literal

from minipage.scheduling import StepPlan

# Nobody was asked for a guess lately; somebody was; a step has drafts, or the one before it had, so that it cannot
# overlap with that.
Kind = Literal["plain", "asked", "drafts"]
MAY_LOSE = 0.01  # of the time of all steps
# Of this many steps the first ones go without guesses. Their median is what a plain step takes.
PERIOD, NUM_MEASURED = 128, 5
# In plain steps: what may be lost besides, and of what was gained before no more than that is remembered; of what was
# lost, no more than MOST_LOST.
MOST, MOST_LOST = 2, 64
NUM_COLD = 2  # steps of a kind that do not count, the first ones


class Account:
    """Of the steps with a certain number of texts."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.gained = 0.0  # seconds, lately
        # Seconds of the last steps of a kind. Their median counts: a single step may have been held up by anything.
        self._times: defaultdict[Kind, deque[float]] = defaultdict(lambda: deque(maxlen=NUM_MEASURED))
        self._usual = 0.0  # the median of the plain ones
        self._risk = 0.0  # what wrong drafts lose
        self._num_of: Counter[Kind] = Counter()

    def may_ask(self) -> bool:
        return self.num_steps % PERIOD >= NUM_MEASURED and self.gained - self._risk >= -MOST * self._usual

    def book(self, kind: Kind, seconds: float, tokens_per_text: float) -> None:
        self.num_steps += 1
        self._num_of[kind] += 1
        if self._num_of[kind] <= NUM_COLD:
            return
        self._times[kind].append(seconds)
        typical = median(self._times[kind])
        if kind == "plain":
            self._usual, tokens_per_text = typical, 1.0  # whatever has ended
        elif kind == "drafts":
            self._risk = min(typical, 2 * MOST * self._usual) - self._usual
        self.gained += (MAY_LOSE + tokens_per_text) * self._usual - typical
        self.gained = max(-MOST_LOST * self._usual, min(self.gained, MOST * self._usual))


class Accounts:
    """Those of one engine.

    Args:
        is_kept: whether guesses depend on it at all.
        num_graphs: how many CUDA graphs there are. A step that captures one is held up by that.
    """

    def __init__(self, is_kept: bool, num_graphs: Callable[[], int] = int) -> None:
        self.is_kept = is_kept
        self.num_graphs, self._num_graphs = num_graphs, 0
        self.clock: Callable[[], float] = perf_counter
        self.of: defaultdict[int, Account] = defaultdict(Account)  # by number of texts
        self._since = 0.0  # when the step began, or the one before it ended, if they overlap
        self._plans_since_asked = 0
        self._had_drafts = False  # the last step

    def begin(self, is_alone: bool) -> None:
        """A step begins; is_alone: none is on its way."""
        self._since = self.clock() if is_alone else self._since

    def may_ask(self, plan: StepPlan) -> bool:
        """Whether to guess in this step, which must have nothing but last tokens; whoever is told so does."""
        self._plans_since_asked += 1
        num_texts = len(plan.chunks)
        is_decode = sum(chunk.num_tokens for chunk in plan.chunks) == num_texts
        may_ask = is_decode and (not self.is_kept or self.of[num_texts].may_ask())
        self._plans_since_asked *= not may_ask
        return may_ask

    def end(self, plan: StepPlan, num_tokens: int) -> None:
        """A step has ended with this many tokens. With a part of a prompt, or held up, it is nobody's gain or loss."""
        seconds, self._since = self.clock() - self._since, self.clock()
        was_held_up, self._num_graphs = self.num_graphs() > self._num_graphs, self.num_graphs()
        if plan.chunks and all(chunk.num_tokens == 1 or hasattr(chunk, "drafts") for chunk in plan.chunks):
            # One is planned before the last one has ended, if they overlap; and the first ones after a guess do not.
            has_drafts = any(chunk.num_tokens > 1 for chunk in plan.chunks)
            kind: Kind = "plain" if self._plans_since_asked > 2 else "asked"
            kind = "drafts" if has_drafts or self._had_drafts else kind
            if not was_held_up:
                self.of[len(plan.chunks)].book(kind, seconds, num_tokens / len(plan.chunks))
            self._had_drafts = has_drafts
