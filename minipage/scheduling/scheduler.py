"""Plans a step: asks the policy who is first, each group what it computes next, the pool for room, and if there is
none, who gives way (preemption.py).

Continuous batching (Yu et al., Orca, OSDI 2022) decides anew at every step, so a request joins as soon as there is room
and leaves as soon as it is done. A step may compute `max_num_batched_tokens` tokens:

    1. running groups first, in the order of the policy: a token for each sequence, or the next chunk of a prompt;
       when the pool runs dry, the last of them is preempted, until there is room
    2. then swapped groups come back, while there are blocks and seats (`max_num_seqs`) left
    3. then waiting groups, while there are tokens left as well; a long prompt is cut into chunks (chunked prefill,
       Agrawal et al., Sarathi, arXiv 2308.16369)

Nobody comes in (2, 3) in a step that had to preempt, nor before somebody who is earlier in the order, whether that one
is swapped out or waits. The first in the order is never preempted for another, and a group that the whole pool could
not hold is refused when it is added. So every step makes progress, and everybody finishes. Preemption is section 4.5 of
the PagedAttention paper (arXiv 2309.06180).

Whatever raises in the middle of all this, be it a policy or an interrupt: `groups` knows everybody, and from there
`recompute_all` makes queues and blocks anew.
"""

from __future__ import annotations

import weakref
from bisect import insort
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from numbers import Real
from typing import Any, get_args

from minipage.errors import ConfigurationError, IntegrityError, InvalidRequestError, count, require_positive, shown
from minipage.memory import BlockPool, Prefix, PrefixCache
from minipage.scheduling.chunks import Chunk, blocks_for, count_tokens
from minipage.scheduling.group import GroupStatus, SequenceGroup
from minipage.scheduling.plan import StepPlan
from minipage.scheduling.policy import Policy, first_come_first_served
from minipage.scheduling.preemption import Preemption, victim
from minipage.scheduling.sequence import Sequence


def claim(part: Any, owner: object, name: str) -> None:
    """A part serves one owner: with two, the same block number would mean two different things."""
    before = getattr(part, "owner", None)
    if before is not None and before() is not None:
        raise ConfigurationError(f"this {name} serves another {type(before()).__name__} already; make one for each.")
    part.owner = weakref.ref(owner)


class Admission(Enum):
    NOW = "now"
    LATER = "later"  # there is not enough room at the moment
    NEVER = "never"  # not even in an empty pool; `add` refuses such a group, so `schedule` does not meet one


class Scheduler:
    """Continuous batching over one block pool.

    Args:
        block_pool: where every sequence's blocks come from.
        max_num_seqs, max_num_batched_tokens: most sequences at once, most tokens in a step.
        policy: the order in which groups are served; see `policy.py`.
        prefix_cache: if given, sequences begin with the blocks that are known to hold their first tokens.
        swap_pool: blocks in a second memory, where preempted groups can wait without losing what they computed.
        preemption: "recompute", "swap", or "auto": swap groups of several sequences, whose recomputation is dear, and
            recompute the others. Without room in the swap pool a group is recomputed.
        watermark: the share of the pool that admission leaves free, so that the running do not run dry at once.
    """

    def __init__(
        self,
        block_pool: BlockPool,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2048,
        *,
        policy: Policy = first_come_first_served,
        prefix_cache: PrefixCache | None = None,
        swap_pool: BlockPool | None = None,
        preemption: Preemption = "recompute",
        watermark: float = 0.0,
    ) -> None:
        require_positive(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
        if str(preemption) not in get_args(Preemption) or (preemption == "swap" and swap_pool is None):
            raise ConfigurationError(
                f"preemption is {shown(preemption)}; it must be 'recompute', or 'swap' or 'auto' with swap space."
            )
        share: Any = watermark
        if not (isinstance(share, Real) and 0 <= share < 1):  # type: ignore[operator]
            raise ConfigurationError(f"watermark is {shown(share)}; it must be a share of the pool, from 0 to below 1.")
        for name, pool in (("block_pool", block_pool), ("swap_pool", swap_pool)):
            if pool is not None:
                claim(pool, self, name)
                if used := getattr(pool, "num_used", 0):
                    raise ConfigurationError(f"{name} has {count(used, 'block')} in use; give a new BlockPool.")
        self.block_pool = block_pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.policy = policy
        self.prefix_cache = prefix_cache
        self.swap_pool = swap_pool
        self.preemption = preemption
        self.watermark_blocks = int(watermark * block_pool.num_blocks)
        self.num_queried_tokens = 0  # of all prompts that were looked for in the prefix cache
        self.num_hit_tokens = 0  # those of them that were found
        self.preempted_queries = 0  # tokens that were looked for once more, to be recomputed after a preemption,
        self.preempted_hits = 0  # and those of them that were found; counted apart, since they find themselves
        self.groups: dict[SequenceGroup, None] = {}  # all that are not finished, in the order of arrival
        # Each of them is in one of these queues; in the order of the policy, first to be served first.
        self.waiting: list[SequenceGroup] = []
        self.running: list[SequenceGroup] = []
        self.swapped: list[SequenceGroup] = []
        self._num_arrived = 0
        self.owner: Callable[[], object] | None = None  # a weak reference to the engine that it serves
        # Whether the policy chooses between who is swapped out and who waits. A subclass with a `schedule` of its own
        # may leave this False: then whoever is swapped out always comes first, which is the paper's rule.
        self._policy_decides = False

    @property
    def has_unfinished(self) -> bool:
        return bool(self.groups)

    def add(self, group: SequenceGroup) -> None:
        """Queue a new group. Raises InvalidRequestError if it could never run: even alone, it might not finish."""
        if group.leader.num_prompt_tokens >= group.max_num_tokens or group.shared_len == 0:
            raise InvalidRequestError("a sequence needs at least one token, and room for one more.")
        pool = self.block_pool
        most = group.max_blocks(pool.block_size)
        most_at_once = min(self.max_num_seqs, self.max_num_batched_tokens)
        if group.max_num_seqs > most_at_once:
            raise InvalidRequestError(
                f"the request lets {group.max_num_seqs} sequences go on together, but a step has room for "
                f"{most_at_once}. Ask for fewer, or raise max_num_seqs and max_num_batched_tokens."
            )
        if most > pool.num_blocks:
            each = f"{group.max_num_seqs} sequences of up to" if group.max_num_seqs > 1 else "up to"
            raise InvalidRequestError(
                f"a prompt of {count(group.leader.num_prompt_tokens, 'token')}, grown to {each} {group.max_num_tokens}"
                f", takes {count(most, 'block')} of {pool.block_size}, but the whole pool has {pool.num_blocks}. "
                "Lower max_tokens, shorten the prompt, or give the engine more num_blocks or memory."
            )
        group.arrival = self._num_arrived
        self._num_arrived += 1
        self._enqueue(group, GroupStatus.WAITING)

    # ---- planning a step

    def schedule(self) -> StepPlan:
        """Choose what the next step computes, and give every token of it a slot."""
        plan = StepPlan()
        self._policy_decides = True
        budget = self.max_num_batched_tokens
        for group in self.running:  # from the front; preemption takes from the back of this same list
            chunks = group.next_chunks(budget)
            # Usually there is room: a token takes at most one block, in each table.
            most_blocks = count_tokens(chunks) * group.num_tables
            if most_blocks > self.block_pool.num_free and not self._make_room(group, chunks, plan):
                break
            budget -= self._give_slots(chunks, plan)
        if not plan.preempted:
            budget = self._swap_in(plan, budget)
            self._admit(plan, budget)
        return plan

    def _make_room(self, group: SequenceGroup, chunks: list[Chunk], plan: StepPlan) -> bool:
        """Preempt the last until the chunks of `group` fit; False if `group` itself had to be preempted.

        The last comes after `group`, or is `group`, so its chunks are not in the plan yet.
        """
        while blocks_for(chunks) > self.block_pool.num_free:
            last = victim(self.running)
            self.preempt(last, plan)
            if last is group:
                return False
        return True

    def _swap_in(self, plan: StepPlan, budget: int) -> int:
        """Bring swapped groups back while there is room; returns how many tokens are left of the budget."""
        while self.swapped and self._is_next(group := self.swapped[0]):
            chunks = group.next_chunks(budget)
            # Its blocks, and those of the next tokens; the watermark is for newcomers only.
            fits = group.num_blocks + blocks_for(chunks) <= self.block_pool.num_free
            if not fits or group.max_num_seqs > self._seats_left():
                break
            plan.swap_in.extend(self.swapped.pop(0).move_to(self.block_pool))
            self._enqueue(group, GroupStatus.RUNNING)
            budget -= self._give_slots(chunks, plan)
        return budget

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Let waiting groups start, with the blocks that the prefix cache knows of them, while there is room."""
        while self.waiting and budget > 0 and self._is_next(group := self.waiting[0]):
            prefix = self._find_prefix(group)
            if self.admission(group, prefix.blocks) is not Admission.NOW:
                break  # nobody overtakes: a long prompt would wait for ever behind a stream of short ones
            self._enqueue(self.waiting.pop(0), GroupStatus.RUNNING)
            if self.prefix_cache is not None:
                self.prefix_cache.adopt(group.leader.block_table, *prefix)
                self._count_found(group)
            group.fork_followers()  # if all that they share was found, which happens after a recomputation only
            budget -= self._give_slots(group.next_chunks(budget), plan)

    def _is_next(self, group: SequenceGroup) -> bool:
        """Whether nobody who is swapped out or waits comes before `group`; of equals, those swapped out come first."""
        if not (self._policy_decides and self.waiting and self.swapped):
            return True
        return min(self.swapped[0], self.waiting[0], key=self.policy) is group

    def _count_found(self, group: SequenceGroup) -> None:
        """A prompt counts once: after a preemption a group finds its own blocks, and that is not the cache's merit."""
        if group.was_admitted:
            self.preempted_queries += group.shared_len
            self.preempted_hits += group.leader.num_computed_tokens
        elif not group.to_score:  # otherwise it looked for nothing: what is found in the cache has no logits to score
            self.num_queried_tokens += group.shared_len
            self.num_hit_tokens += group.leader.num_computed_tokens
            group.num_cached_tokens = group.leader.num_computed_tokens
        group.was_admitted = True

    def admission(self, group: SequenceGroup, cached: list[int]) -> Admission:
        """Whether a waiting group may start, if the blocks `cached` already hold its beginning."""
        pool = self.block_pool
        if group.max_blocks(pool.block_size) > pool.num_blocks:
            return Admission.NEVER
        revived = sum(pool.ref_count(block) == 0 for block in cached)  # these leave the free queue, too
        needed = group.blocks_to_start(pool.block_size) - len(cached) + revived
        spare = pool.num_free - (self.watermark_blocks if self.running else 0)
        fits = needed <= spare and group.max_num_seqs <= self._seats_left()
        return Admission.NOW if fits else Admission.LATER

    def _find_prefix(self, group: SequenceGroup) -> Prefix:
        if self.prefix_cache is None:
            return Prefix([], [])
        # Only what all its sequences share, before the tokens whose logits are asked for. `find` never finds the last
        # token that it is given, because one has to be computed: so it is given one more.
        length = min(group.shared_len, group.to_score.start) if group.to_score else group.shared_len
        return Prefix(*self.prefix_cache.find(group.leader.token_ids[: length + 1], group.cache_salt))

    def _seats_left(self) -> int:
        return self.max_num_seqs - sum(group.max_num_seqs for group in self.running)

    def _give_slots(self, chunks: list[Chunk], plan: StepPlan) -> int:
        """Put chunks into the plan, with a slot for each token; returns how many tokens that is."""
        num_tokens = 0
        for chunk in chunks:
            plan.copies += chunk.seq.block_table.append(chunk.num_tokens)
            plan.chunks.append(chunk)
            num_tokens += chunk.num_tokens
        return num_tokens

    # ---- after a step

    def update(self, plan: StepPlan) -> None:
        """The K and V of the planned tokens are written: groups may fork, and full blocks can be found from now on."""
        for chunk in plan.chunks:
            group, seq = chunk.group, chunk.seq
            if self.prefix_cache is not None:
                self.prefix_cache.publish(seq.block_table, seq.token_ids, group.cache_salt)
            if group.is_sharing and group.sequences:  # one that has ended in this step has none, nor any blocks
                group.fork_followers()

    def finish(self, group: SequenceGroup, seq: Sequence) -> None:
        """A sequence is complete and gives its blocks back; with the last one the group is done."""
        seq.finished = True
        seq.block_table.free()
        group.sequences.remove(seq)
        if not group.sequences:
            self.remove(group)

    def remove(self, group: SequenceGroup) -> None:
        """Take a group out, whatever its state, and free its blocks: it is finished, or was aborted."""
        for seq in group.sequences:
            seq.block_table.free()
        self._dequeue(group)
        group.status = GroupStatus.FINISHED
        self.groups.pop(group, None)

    # ---- preemption

    def preempt(self, group: SequenceGroup, plan: StepPlan) -> None:
        """Make a running group wait, without its blocks: they are saved in the swap pool, or computed again later."""
        self._dequeue(group)
        group.num_preemptions += 1
        plan.preempted.append(group)
        wanted = self.preemption == "swap" or (self.preemption == "auto" and len(group.sequences) > 1)
        if wanted and self.swap_pool is not None and group.num_blocks <= self.swap_pool.num_free:
            plan.swap_out.extend(group.move_to(self.swap_pool))
            self._enqueue(group, GroupStatus.SWAPPED)
        else:
            group.restart(self.block_pool)
            self._enqueue(group, GroupStatus.WAITING)

    def recompute_all(self) -> None:
        """Something failed half way. Queues, blocks and what was written to them cannot be trusted: all is made anew.

        What counts is who is in `groups`, and which tokens their sequences have. Everybody waits, to be computed again.
        Prefixes stay known: before such a block is written, the pool hands it out, and then it is forgotten.
        """
        for pool in filter(None, (self.block_pool, self.swap_pool)):
            for block in range(pool.num_blocks):
                for _ in range(pool.ref_count(block)):  # whoever held it
                    pool.free(block)
        self.running = []
        self.swapped = []
        for group in list(self.groups):
            group.sequences = [seq for seq in group.sequences if not seq.finished]
            for seq in group.sequences:
                seq.block_table = type(seq.block_table)(self.block_pool)
            group.status = GroupStatus.WAITING if group.sequences else GroupStatus.FINISHED
            if group.sequences:
                group.restart(self.block_pool)
            else:
                del self.groups[group]
        self.waiting = list(self.groups)
        with suppress(Exception):  # a policy that raises now, too: then first come, first served
            self.waiting = sorted(self.groups, key=self.policy)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless every group is in the queue of its status and in no other, and the block tables
        account for every block in use, here and in the swap pool."""
        queued = Counter([*self.waiting, *self.running, *self.swapped])
        for group in queued.keys() | self.groups.keys():
            if queued[group] != 1 or group not in self._queue(group) or group not in self.groups:
                raise IntegrityError(
                    f"{group} is in {queued[group]} queues; whoever is unfinished should be in one, that of its status."
                )
        here = [seq.block_table for group in [*self.running, *self.waiting] for seq in group.sequences]
        self.block_pool.check_integrity(here)
        if self.swap_pool is not None:
            self.swap_pool.check_integrity(seq.block_table for group in self.swapped for seq in group.sequences)

    def _enqueue(self, group: SequenceGroup, status: GroupStatus) -> None:
        group.status = status
        self.groups[group] = None
        insort(self._queue(group), group, key=self.policy)

    def _dequeue(self, group: SequenceGroup) -> None:
        if group in self._queue(group):
            self._queue(group).remove(group)

    def _queue(self, group: SequenceGroup) -> list[SequenceGroup]:
        """The queue that a group of this status is in."""
        queues = {
            GroupStatus.WAITING: self.waiting,
            GroupStatus.RUNNING: self.running,
            GroupStatus.SWAPPED: self.swapped,
        }
        return queues.get(group.status, [])
