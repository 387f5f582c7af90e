"""The paper's machines, models and numbers (Kwon et al., arXiv 2309.06180), and what a rerun of a figure is.

What the paper says is in its tables, or in its text; bars without numbers have been read off. What it does not say, how
long a step takes, how lengths are spread, is assumed once, in machines.py, workload.py and stand_in.py, and never for
one figure alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minipage.simulate.configs import find_architecture
from minipage.simulate.cost import RUN, CostModel, Sizes
from minipage.simulate.machines import A100_40, A100_80, FASTER_TRANSFORMER, PAPER_SYSTEM, Machine
from minipage.simulate.pictures import Picture
from minipage.simulate.serve import Memory, Setting


class Server(NamedTuple):
    """A row of the paper's Table 1."""

    model: str
    machine: Machine
    num_devices: int
    num_slots: int  # tokens that the KV cache holds


SERVERS = {
    "OPT-13B": Server("OPT-13B", A100_40, 1, 15_728),
    "OPT-66B": Server("OPT-66B", A100_40, 4, 9_700),
    "OPT-175B": Server("OPT-175B", A100_80, 8, 60_100),
    "LLaMA-13B": Server("LLaMA-13B", A100_40, 1, 15_728),  # has the same width and depth as OPT-13B
}

# Requests of ShareGPT a second at which each system was measured for Figure 12, an hour each (OPT-175B: 15 minutes):
# from experiments/fig12-*.sh of the artifact, github.com/sosp-ae-39/sosp-ae-astra, where vLLM is still called Astra.
MEASURED_AT: dict[str, dict[Memory, tuple[float, ...]]] = {
    "OPT-13B": {
        "paged": (1.0, 1.25, 1.5, 1.75, 1.9, 2.0), "oracle": (0.5, 0.75, 1.0, 1.25, 1.5), "max": (0.2, 0.4, 0.5, 0.75),
    },
    "OPT-66B": {
        "paged": (0.4, 0.6, 0.8, 0.9, 1.0), "oracle": (0.2, 0.3, 0.4, 0.5), "max": (0.1, 0.2, 0.3),
    },
    "OPT-175B": {
        "paged": (1.5, 1.75, 2.0, 2.25, 2.5, 3.0), "oracle": (0.8, 1.0, 1.2, 1.4, 1.6, 1.8),
        "max": (0.25, 0.5, 0.75, 1.0, 1.25),
    },
}  # fmt: skip
MEASURED_FOR = {"OPT-13B": 3600.0, "OPT-66B": 3600.0, "OPT-175B": 900.0}  # seconds


def setting(server: Server, memory: Memory, **options: Any) -> Setting:
    """The server with one way to manage its memory."""
    overheads = FASTER_TRANSFORMER if memory == "static" else PAPER_SYSTEM
    sizes = Sizes.of(find_architecture(server.model))
    cost = CostModel(sizes, server.machine, overheads, server.num_devices, run=RUN)
    return Setting(cost, server.num_slots, memory, **options)


class Row(NamedTuple):
    """A number of the paper's beside ours."""

    what: str
    simulated: float
    paper: float | tuple[float, float] | None  # two: it gives a range; None: it gives none
    tolerance: float = 0.1  # how far it may be off, as a share
    claim: str = ""  # what the paper says in its text, if this is the number of it
    why: str = ""  # what it may be, if it is missed

    @property
    def off(self) -> float:
        """By which share it is off; 0 within a range."""
        if self.paper is None:
            return math.nan
        low, high = self.paper if isinstance(self.paper, tuple) else (self.paper, self.paper)
        nearest = min(max(self.simulated, low), high)
        return self.simulated / nearest - 1 if nearest else 0.0

    @property
    def verdict(self) -> str:
        if self.paper is None:
            return ""
        return "met" if abs(self.off) <= self.tolerance else "missed"


@dataclass
class Figure:
    """A figure, rerun."""

    name: str
    title: str
    rows: list[Row] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # why it differs, where it does

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        rows = [row._asdict() | {"off": row.off, "verdict": row.verdict} for row in self.rows]
        for row in rows:
            row["off"] = None if math.isnan(row["off"]) else row["off"]
            row["simulated"] = None if math.isnan(row["simulated"]) else row["simulated"]
        series = [picture.numbers() for picture in self.pictures]
        return {"figure": self.name, "title": self.title, "rows": rows, "pictures": series, "notes": self.notes}
