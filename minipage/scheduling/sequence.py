"""One text being generated: its tokens, its block table, and how far it has come.

There is no "prefill" or "decode" state. A sequence has tokens (the prompt, then what was generated), and the K and V of
the first so many of them are in the cache. Each step computes some of the rest:

    tokens     [ p p p p p p p p | g g g ]        p from the prompt, g generated
    computed   [ = = = = = = = = = = ]            their K and V are in the blocks
                                       ^          the next step computes this one, and its logits give the next token

Many left to compute is what others call prefill, one left is decode. After a preemption all are left.
"""

from __future__ import annotations

from enum import Enum

from minipage.memory import BlockTable


class Status(Enum):
    WAITING = "waiting"  # has no blocks: not started yet, or preempted
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """The tokens of one request and the block table they are stored through.

    `max_num_tokens` is how long it may get, the prompt included.
    """

    def __init__(self, seq_id: str, prompt_token_ids: list[int], max_num_tokens: int, block_table: BlockTable) -> None:
        self.seq_id = seq_id
        self.token_ids = list(prompt_token_ids)  # the prompt, and then every generated token
        self.num_prompt_tokens = len(prompt_token_ids)
        self.max_num_tokens = max_num_tokens
        self.block_table = block_table
        self.status = Status.WAITING
        self.num_preemptions = 0

    def __repr__(self) -> str:
        progress = f"{self.num_computed_tokens}/{len(self.token_ids)} tokens computed"
        return f"Sequence({self.seq_id!r}, {self.status.value}, {progress})"

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose K and V are in the cache (between two steps; within a step, also those being computed)."""
        return self.block_table.num_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens :]
