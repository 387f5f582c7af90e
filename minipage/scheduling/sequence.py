"""One text being generated: its tokens, its block table, and how far it has come.

There is no "prefill" or "decode" state. A sequence has tokens (the prompt, then what was generated), and the K and V of
the first `num_computed_tokens` are in the cache. Each step computes some of the rest:

    tokens     [ p p p p p p p p | g g g ]        p from the prompt, g generated
    computed   [ = = = = = = = = = = ]            their K and V are in the blocks
                                       ^          the next step computes this one, and its logits give the next token

Many left to compute is what others call prefill, one left is decode. After a preemption all may be left.
"""

from __future__ import annotations

from minipage.memory import BlockTable


class Sequence:
    """The tokens of one text and the block table that their K and V are stored through."""

    def __init__(self, seq_id: str, prompt_token_ids: list[int], block_table: BlockTable) -> None:
        self.seq_id = seq_id
        self.token_ids = list(prompt_token_ids)  # the prompt, and then every generated token
        self.num_prompt_tokens = len(prompt_token_ids)
        self.block_table = block_table
        self.finished = False

    def __repr__(self) -> str:
        return f"Sequence({self.seq_id!r}, {self.num_computed_tokens}/{len(self.token_ids)} tokens computed)"

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

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def fork(self, seq_id: str) -> Sequence:
        """Another sequence with the same tokens, sharing all blocks until one of the two writes."""
        twin = Sequence(seq_id, self.token_ids[: self.num_prompt_tokens], self.block_table.fork())
        twin.token_ids = self.token_ids.copy()
        return twin
