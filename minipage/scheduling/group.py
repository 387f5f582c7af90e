"""The sequences of one request: scheduled, preempted and resumed together.

A request may ask for several texts (samples, or beams). They begin alike, so the first sequence computes what they have
in common, and then the others fork its block table:

    sharing      leader     [ = = = = = = . . ]      computes up to `shared_len`, in as many steps as it takes
                 followers  [ . . . . . . . . ]      have no blocks yet
    forked       leader     [ = = = = = = = = ] a    all map the same blocks; whoever writes into one that is shared
                 followers  [ = = = = = = = = ] b    gets a copy of it first

After a preemption by recomputation the group starts again in this way; what its sequences share then is the prompt and
whatever generated tokens they still have in common.
"""

from __future__ import annotations

from enum import Enum
from itertools import takewhile

from minipage.memory import BlockCopy, BlockPool, blocks_needed
from minipage.scheduling.chunks import next_chunks
from minipage.scheduling.sequence import Sequence


class GroupStatus(Enum):
    WAITING = "waiting"  # has no blocks: not started yet, or preempted for recomputation
    RUNNING = "running"
    SWAPPED = "swapped"  # its blocks are in the swap pool
    FINISHED = "finished"


class SequenceGroup:
    """All that the scheduler knows of a request.

    `max_num_tokens` is how long a sequence may get, the prompt included, and `max_num_seqs` how many sequences there
    may be at a time; requests with a smaller `priority` are more urgent; prefixes are shared only between groups of the
    same `cache_salt`.
    """

    num_tables = 1  # of a sequence; more where layers have tables of their own (windowed.py)

    def __init__(
        self,
        group_id: str,
        sequences: list[Sequence],
        max_num_tokens: int,
        max_num_seqs: int = 1,
        priority: int = 0,
        cache_salt: str = "",
    ) -> None:
        self.group_id = group_id
        self.sequences = sequences  # those that are not finished; the first is the leader
        self.max_num_tokens = max_num_tokens
        self.max_num_seqs = max_num_seqs  # of this group; the scheduler's own is for all groups together
        self.priority = priority
        self.cache_salt = cache_salt
        self.arrival = -1  # the scheduler numbers its groups
        self.status = GroupStatus.WAITING
        self.num_preemptions = 0
        self.was_admitted = False  # with its prefix looked up, at least once
        self.num_cached_tokens = 0  # of the prompt, which the prefix cache knew when it was first admitted
        self.shared_len = len(sequences[0].token_ids)
        self.is_sharing = True  # the leader computes for all; the others have no blocks
        self.to_score = range(0)  # positions of the prompt whose logits are still wanted; usually none

    def __repr__(self) -> str:
        return f"SequenceGroup({self.group_id!r}, {self.status.value}, {len(self.sequences)} sequences)"

    @property
    def leader(self) -> Sequence:
        return self.sequences[0]

    @property
    def num_blocks(self) -> int:
        """How many physical blocks the group holds; shared ones count once."""
        return len({block for seq in self.sequences for block in seq.block_table})

    def max_blocks(self, block_size: int) -> int:
        """The most it could grow to: every sequence as long as allowed, and only full blocks of the prompt shared."""
        longest = blocks_needed(self.max_num_tokens - 1, block_size)  # the last token is never stored
        shared = self.leader.num_prompt_tokens // block_size
        return shared + self.max_num_seqs * (longest - shared)

    @staticmethod
    def longest_that_fits(num_prompt_tokens: int, max_num_seqs: int, num_blocks: int, block_size: int) -> int:
        """How long every sequence may get so that all of them fit into a pool: `max_blocks` solved for the length."""
        shared = num_prompt_tokens // block_size
        return (shared + (num_blocks - shared) // max_num_seqs) * block_size + 1  # the last token is never stored

    def blocks_to_start(self, block_size: int) -> int:
        """How many it takes to compute all the tokens there are now, beginning with no blocks."""
        longest = blocks_needed(max(len(seq.token_ids) for seq in self.sequences), block_size)
        if self.shared_len == len(self.leader.token_ids):
            return longest  # all are alike, and share everything
        return longest + (len(self.sequences) - 1) * (longest - self.shared_len // block_size)

    next_chunks = next_chunks  # what it computes next, and how much of it; see chunks.py

    def fork_followers(self) -> None:
        """Once the leader has computed what all have in common, the others share its blocks."""
        if self.is_sharing and self.leader.num_computed_tokens == self.shared_len:
            self.is_sharing = False
            for seq in self.sequences[1:]:
                seq.block_table = self.leader.block_table.fork()

    def restart(self, pool: BlockPool) -> None:
        """Give all blocks back. The tokens stay, the generated ones too, and will be computed again from `pool`."""
        for seq in self.sequences:
            seq.block_table.free()
            seq.block_table.pool = pool
        same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*(seq.token_ids for seq in self.sequences)))
        self.shared_len = len(list(same))
        lengths = {len(seq.token_ids) for seq in self.sequences}
        if len(lengths) > 1:  # a step failed after some sequences, but not all, had been given their next token
            self.shared_len = min(self.shared_len, min(lengths) - 1)  # the shorter ones have to compute their last one
        self.is_sharing = True

    def move_to(self, pool: BlockPool) -> list[BlockCopy]:
        """Move every block to another pool, a shared one once; returns the (source, destination) pairs to copy."""
        moved: dict[int, int] = {}
        for seq in self.sequences:
            seq.block_table.move_to(pool, moved)
        return [BlockCopy(*pair) for pair in moved.items()]
