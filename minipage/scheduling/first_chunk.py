"""Admission by the first chunk: `scheduler_reserve_full_isl=False`. By default a prompt has to fit as a whole.

A long prompt is computed in chunks, so it could start as soon as there is room for the first. Then more prompts are on
their way at once than fit, and when the blocks run out, the last of them is preempted with what it has computed:

    free blocks          10       a prompt of 16 blocks, in chunks of 4
    reserve the whole    waits until 16 are free                   nothing is lost
    first chunk only     comes in: 4, 8, then 2 free are too few   8 blocks are computed again, perhaps more than once

vLLM admitted by the first chunk until spring 2026 (#37307 tells of 4 prompts of 100,000 tokens, and a fifth that came
and went); since then `scheduler_reserve_full_isl` is True unless one says otherwise, there as here. Together with
`watermark`, which keeps a share of the pool free for those who run to grow, this is all there is to admission. Neither
keeps anybody out for ever: whoever is alone needs no watermark, and who could not fit alone was refused at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minipage.errors import ConfigurationError
from minipage.memory import blocks_needed
from minipage.memory.partial_cache import PartialPrefixCache
from minipage.scheduling.chunks import Chunk
from minipage.scheduling.group import SequenceGroup
from minipage.scheduling.plan import StepPlan
from minipage.scheduling.scheduler import Admission, Scheduler


class FirstChunkScheduler(Scheduler):
    """Admits a group if the tokens that this step computes of it find room."""

    _planned: Sequence[Chunk] = ()  # for this step, so far

    def _admit(self, plan: StepPlan, budget: int) -> None:
        self._planned = plan.chunks  # which grows with each group that is admitted
        super()._admit(plan, budget)

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        pool = self.block_pool
        whole = super().admission(group, cached)
        is_alike = group.shared_len == len(group.leader.token_ids)  # otherwise several go on at once, if all is found
        if whole is not Admission.LATER or not is_alike or group.max_num_seqs > self._seats_left():
            return whole
        revived = sum(pool.ref_count(block) == 0 for block in cached)
        spare = pool.num_free - (self.watermark_blocks if self.running else 0)
        return Admission.NOW if revived + self._blocks_of_first_chunk(group) <= spare else Admission.LATER

    def _blocks_of_first_chunk(self, group: SequenceGroup) -> int:
        """At most this many; what is left of the step's tokens limits it, and what is still to be computed."""
        size = self.block_pool.block_size
        num_tokens = self.max_num_batched_tokens - sum(chunk.num_tokens for chunk in self._planned)
        if isinstance(self.prefix_cache, PartialPrefixCache):
            num_tokens += size - 1  # it may begin inside a block
        return group.num_tables * blocks_needed(num_tokens, size)


def scheduler_for(own: Callable[..., Scheduler] | None, scheduler_reserve_full_isl: bool) -> Callable[..., Scheduler]:
    """What makes the scheduler that the options ask for. Raises ConfigurationError if there is none."""
    if scheduler_reserve_full_isl:
        return own or Scheduler
    if own is not None:
        raise ConfigurationError("scheduler_reserve_full_isl would have no effect on a scheduler that is handed in.")
    return FirstChunkScheduler
