"""A step's time looked up among steps that were measured, where no roofline is true to a machine.

On a CPU other kernels multiply one row than four, eight or a prompt: three rows may take longer than eight. So here
the seconds that a parameter takes are interpolated between numbers of rows that somebody has timed, once in steps that
only decode and once in steps with a prompt; what K and V cost is the difference between long and short contexts, and
what it costs that others decode beside a prompt is what such a step took longer than its parts.
`python -m benchmarks.simulate` measures the machine that it runs on.

Where steps overlap, on a GPU, what was timed is the longer of host and device; the host's part is the CostModel's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minipage.errors import ConfigurationError
from minipage.simulate.cost import CostModel, Work


class Timed(NamedTuple):
    """A step of known size, and how long it took."""

    work: Work
    seconds: float

    @property
    def is_decode(self) -> bool:
        return self.work.num_sampled == self.work.num_tokens


@dataclass(frozen=True)
class Curve:
    """Seconds by a number of rows, between those that were timed: straight lines, if both axes are logarithms."""

    rows: tuple[int, ...]  # ascending
    seconds: tuple[float, ...]

    def at(self, rows: int) -> float:
        return float(np.exp(np.interp(np.log(rows), np.log(self.rows), np.log(self.seconds))))


@dataclass(frozen=True)
class MeasuredCost(CostModel):
    """A CostModel whose products are looked up. What the host does is part of them, and not added."""

    decodes: Curve = Curve((1,), (1.0,))  # of each parameter that rows are multiplied with
    prompts: Curve = Curve((1,), (1.0,))
    # Seconds that a step takes longer because it has both, if it is no graph, and if it is one; below 0: shorter.
    beside: tuple[float, float] = 0.0, 0.0

    def products(self, work: Work) -> float:
        sizes = self.sizes
        head = sizes.head_parameters * self.decodes.at(work.num_sampled) if work.num_sampled else 0.0
        if work.num_sampled == work.num_tokens:
            return sizes.num_multiplied * self.decodes.at(work.num_tokens) + head
        beside = self.beside[self.is_graph(work)] if work.num_requests > 1 else 0.0
        return max(sizes.num_multiplied * self.prompts.at(work.num_tokens) + head + beside, 0.0)

    def host(self, work: Work) -> float:
        return min(super().host(work), self.device(work)) if self.overheads.overlaps else 0.0

    def gaps(self) -> float:
        return 0.0


def measured(cost: CostModel, steps: Iterable[Timed]) -> MeasuredCost:
    """The model of a machine on which these steps were timed: decodes of several numbers of rows, of which some have
    long contexts too, prompts from their beginning, and perhaps prompts with decodes beside them."""
    by_rows = sorted(steps, key=lambda step: (step.work.num_tokens, step.work.num_read))
    decodes = [step for step in by_rows if step.is_decode]
    prompts = [step for step in by_rows if not step.is_decode and step.work.num_requests == 1]
    both = [step for step in by_rows if not step.is_decode and step.work.num_requests > 1]
    alike = [(a, b) for a, b in pairwise(decodes) if a.work.num_tokens == b.work.num_tokens]
    tokens = sum(b.work.num_read - a.work.num_read for a, b in alike)
    seconds = sum(b.seconds - a.seconds for a, b in alike)
    if not prompts or tokens <= 0 or seconds <= 0:
        raise ConfigurationError("a machine is known by steps with prompts, and by decodes of short and long contexts.")
    machine = replace(cost.machine, bandwidth=cost.kv_bytes_per_token * tokens / seconds)
    cost = replace(cost, machine=machine)
    longer = {id(b) for _, b in alike}
    sizes, per_decode, per_prompt = cost.sizes, {}, {}
    for step in decodes:
        if id(step) not in longer:
            per_decode[step.work.num_tokens] = rest(cost, step) / (sizes.num_multiplied + sizes.head_parameters)
    curve = Curve(tuple(per_decode), tuple(per_decode.values()))
    for step in prompts:
        head = sizes.head_parameters * curve.at(step.work.num_sampled)
        per_prompt[step.work.num_tokens] = max(rest(cost, step) - head, 1e-9) / sizes.num_multiplied
    found = MeasuredCost(**vars(cost), decodes=curve, prompts=Curve(tuple(per_prompt), tuple(per_prompt.values())))
    longer_by: tuple[list[float], list[float]] = [], []
    for step in both:
        longer_by[cost.is_graph(step.work)].append(step.seconds - found.seconds(step.work))
    without, graph = (sum(each) / len(each) if each else 0.0 for each in longer_by)
    return replace(found, beside=(without, graph))


def rest(cost: CostModel, step: Timed) -> float:
    """What is left of a step's time without its attention."""
    return max(step.seconds - cost.attention(step.work), 1e-9)
