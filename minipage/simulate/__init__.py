"""Reserving against paging, in numbers: the allocators that paging replaced, and a simulation of both.

baselines.py    a request's memory in one piece, reserved beforehand
simulation.py   how much of the memory holds something useful, step by step; on screen: `python -m minipage.simulate`
"""

from minipage.simulate.simulation import (
    MAX_MODEL_LEN,
    NUM_SLOTS,
    PAPER,
    Request,
    contiguous,
    draw_lengths,
    draw_requests,
    gamma_parameters,
    mean_held,
    memories,
    paged,
    simulate,
    worked_example,
)

__all__ = [
    "MAX_MODEL_LEN",
    "NUM_SLOTS",
    "PAPER",
    "Request",
    "contiguous",
    "draw_lengths",
    "draw_requests",
    "gamma_parameters",
    "mean_held",
    "memories",
    "paged",
    "simulate",
    "worked_example",
]
