"""Scheduling: sequences, and who of them runs in the next step."""

from minipage.scheduling.scheduler import Chunk, Scheduler, StepPlan
from minipage.scheduling.sequence import Sequence, Status

__all__ = ["Chunk", "Scheduler", "Sequence", "Status", "StepPlan"]
