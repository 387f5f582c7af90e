"""The paper's figures, rerun: each is a function that lists jobs, and one that makes the figure of their results.

`python -m minipage.simulate figure N` shows the result beside the paper's numbers; docs/paper.md has all of them.

slots.py     2            where the memory goes
rates.py     12, 13, 17   requests a second, and at a time
sharing.py   14, 15, 16   several texts of a prompt, beams, common prefixes
blocks.py    18b, 19      the size of a block
"""

from __future__ import annotations

from collections.abc import Callable

from minipage.simulate.figures import blocks, rates, sharing, slots
from minipage.simulate.figures.jobs import Jobs, Results, Scale
from minipage.simulate.paper import Figure

FIGURES: dict[str, tuple[Callable[[Scale], Jobs], Callable[[Results], Figure]]] = {
    "2": (slots.jobs_2, slots.figure_2),
    "12": (rates.jobs_12, rates.figure_12),
    "13": (rates.jobs_13, rates.figure_13),
    "14": (sharing.jobs_14, sharing.figure_14),
    "15": (sharing.jobs_15, sharing.figure_15),
    "16": (sharing.jobs_16, sharing.figure_16),
    "17": (rates.jobs_17, rates.figure_17),
    "18b": (blocks.jobs_18b, blocks.figure_18b),
    "19": (blocks.jobs_19, blocks.figure_19),
}

__all__ = ["FIGURES", "Scale"]
