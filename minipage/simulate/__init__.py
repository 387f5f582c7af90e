"""Reserving against paging, in numbers: the allocators that paging replaced, and simulations of both.

    memory alone
baselines.py    a request's memory in one piece, reserved beforehand
simulation.py   how much of the memory holds something useful, step by step; on screen: `python -m minipage.simulate`

    the real engine on a virtual clock
machines.py     what GPUs can do in a second, and what the host takes
configs.py      sizes of well-known models
cost.py         how long a step takes
measured.py     the same, looked up among steps that were timed
workload.py     who asks for what, and when
stand_in.py     a runner that computes nothing, and requests that know how long they get
reserving.py    the baselines under the same engine; static batches
serve.py        arrivals in, a report out

    the real engine on the real clock
device.py       a device that computes nothing, and takes its time

    the paper
paper.py        its servers, and a number beside ours
pools.py        many simulations, on all cores or on a Ray cluster
figures/        its figures, each a list of simulations; on screen: `python -m minipage.simulate figure N`
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
