"""Scheduling: sequences, the groups they form, and which of these run in the next step."""

from minipage.scheduling.group import Chunk, SequenceGroup, Status
from minipage.scheduling.policy import POLICIES, Policy
from minipage.scheduling.scheduler import Admission, Preemption, Scheduler, StepPlan
from minipage.scheduling.sequence import Sequence

__all__ = [
    "POLICIES",
    "Admission",
    "Chunk",
    "Policy",
    "Preemption",
    "Scheduler",
    "Sequence",
    "SequenceGroup",
    "Status",
    "StepPlan",
]
