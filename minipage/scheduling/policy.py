"""Who comes first.

A policy is a function from a group to its place in the queue: the smallest value is served first.
The first in this order is admitted first and resumed first; the last is the first to be preempted
(preemption.py). Write your own:

    def shortest_first(group):
        return group.max_num_tokens, group.arrival

    LLM(policy=shortest_first)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minipage.scheduling.group import SequenceGroup

Policy = Callable[[SequenceGroup], Any]  # the values only have to be comparable with each other


def first_come_first_served(group: SequenceGroup) -> int:
    return group.arrival


def priority(group: SequenceGroup) -> tuple[int, int]:
    """The urgent first (a smaller number is more urgent), and among equals first come first served."""
    return group.priority, group.arrival


POLICIES: dict[str, Policy] = {"fcfs": first_come_first_served, "priority": priority}
