"""Scheduling: sequences, the groups they form, and which of these run in the next step."""

from minipage.renamed import keep_old_names
from minipage.scheduling.chunks import Chunk
from minipage.scheduling.group import GroupStatus, SequenceGroup
from minipage.scheduling.plan import StepPlan
from minipage.scheduling.policy import POLICIES, Policy
from minipage.scheduling.preemption import Preemption
from minipage.scheduling.scheduler import Admission, Scheduler
from minipage.scheduling.sequence import Sequence

__all__ = [
    "POLICIES",
    "Admission",
    "Chunk",
    "GroupStatus",
    "Policy",
    "Preemption",
    "Scheduler",
    "Sequence",
    "SequenceGroup",
    "StepPlan",
]

keep_old_names(__name__)
