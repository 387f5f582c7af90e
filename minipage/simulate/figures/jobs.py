"""What a figure is made of: simulations that know nothing of each other, so that a pool of processes can run them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minipage.simulate.serve import Memory, Report, Setting, capacity, serve
from minipage.simulate.workload import ALPACA, SHAREGPT, Arrival, Lengths, poisson, until

RESERVING: tuple[Memory, ...] = ("max", "pow2", "oracle")
ALL: tuple[Memory, ...] = ("paged", "oracle", "pow2", "max", "static")
SHARES = 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15  # of the most that can be served, of which curves are drawn
DATASETS = {"ShareGPT": SHAREGPT, "Alpaca": ALPACA}
# Newstest sentences have about 21 English words; German translations are a little longer. The paper does not say.
WMT16 = Lengths("WMT16 En-De", 28, 14, 38, 19)
ANSWERS = Lengths("answers", 161.31, 200, 337.99, 296, max_model_len=10**6)


class Traffic(NamedTuple):
    """What arrives, at whatever rate. (Other processes are sent this, and not the requests.)"""

    lengths: Lengths
    n: int = 1
    is_beam: bool = False
    prefix: int = 0  # tokens that all prompts begin with, besides their own
    begins_anew: float = 0.0  # if above 0, prompts are conversations, of which this share begins with every request

    def arrivals(self, rate: float, seed: int) -> Iterator[Arrival]:
        lengths = chats(seed, self.begins_anew) if self.begins_anew else self.lengths.draw(seed)
        for arrival in poisson(lengths, rate, seed):
            yield arrival._replace(
                num_prompt_tokens=arrival.num_prompt_tokens + self.prefix,
                n=self.n, is_beam=self.is_beam, prefix=self.prefix,
            )  # fmt: skip


def chats(seed: int, begins_anew: float) -> Iterator[tuple[int, int]]:
    """Rounds of conversations: all that was said before, of which the last 1,024 tokens count, and at most 1,024 out.

    After each round the next one begins a new conversation with probability `begins_anew`.
    """
    generator = np.random.default_rng([seed, 2])
    rounds = ANSWERS.draw(seed)
    while True:
        said = 0
        while True:
            asked, answered = next(rounds)
            yield max(1, min(1024, said + asked)), min(1024, answered)
            said += asked + answered
            if generator.random() > 1 - begins_anew:
                break


class Job(NamedTuple):
    """A simulation: at a rate for some seconds, or of the most that can be served."""

    setting: Setting
    traffic: Traffic
    seed: int
    rate: float | None = None
    seconds: float = 0.0
    num_requests: int = 0

    def most(self) -> float:
        """Requests a second that can be served."""
        return capacity(self.setting, self.traffic.arrivals(1.0, self.seed), self.num_requests)

    def at_rate(self, rate: float) -> Report:
        arrivals = until(self.traffic.arrivals(rate, self.seed), self.seconds)
        return serve(self.setting, arrivals, warm=0.2 * self.seconds)

    def curve(self) -> tuple[float, list[tuple[float, Report]]]:
        """The most, and what happens at some shares of it."""
        most = self.most()
        return most, [(share * most, self.at_rate(share * most)) for share in SHARES]

    def at_rates(self, rates: tuple[float, ...]) -> list[tuple[float, Report]]:
        return [(rate, self.at_rate(rate)) for rate in rates]

    def run(self) -> Report:
        assert self.rate is not None
        return self.at_rate(self.rate)


def rate_at(points: list[tuple[float, Report]], limit: float) -> float:
    """The rate at which a curve reaches this normalised latency, between the rates that were simulated; or nan."""
    rates = [rate for rate, _ in points]
    logs = np.log([report.normalized_latency for _, report in points])  # [num_points]
    return float(np.interp(np.log(limit), np.maximum.accumulate(logs), rates, right=np.nan))


def last_at(points: list[tuple[float, Report]], limit: float) -> float:
    """The highest of the rates that were simulated whose normalised latency is at most this; nan if there is none."""
    return max((rate for rate, report in points if report.normalized_latency <= limit), default=math.nan)


Jobs = dict[Any, Callable[[], Any]]  # by whatever name a figure likes
Results = dict[Any, Any]


class Scale(NamedTuple):
    """How much is simulated."""

    seed: int = 0
    factor: float = 1.0

    def requests(self, count: int) -> int:
        return max(20, round(count * self.factor))

    def seconds(self, count: float) -> float:
        return max(10.0, count * self.factor)
