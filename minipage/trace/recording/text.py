"""One sequence while a trace is replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minipage.memory.kv_groups import NULL_BLOCK


def num_common(old: Sequence[Any], new: Sequence[Any]) -> int:
    """How many members both have in common, from the beginning on."""
    return next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))


@dataclass
class Text:
    """One sequence as it is at the moment."""

    label: str
    seq_id: str
    request_id: str
    num_prompt_tokens: int
    max_num_tokens: int
    status: str = "waiting"
    token_ids: list[int] = field(default_factory=list)
    computed: int = 0  # tokens that have a slot
    blocks: list[int] = field(default_factory=list)
    more_blocks: list[list[int]] = field(default_factory=list)  # the tables of further KV cache groups
    swap_blocks: list[int] = field(default_factory=list)
    last_blocks: list[int] = field(default_factory=list)
    last_more_blocks: list[list[int]] = field(default_factory=list)
    preemptions: int = 0
    finish_reason: str | None = None
    num_old_tokens: int = 0  # when this step began

    @property
    def tables(self) -> list[list[int]]:
        """Its block table, or that of each KV cache group."""
        return [self.blocks, *self.more_blocks]

    @property
    def held_blocks(self) -> list[int]:
        """The blocks in its tables."""
        return [block for table in self.tables for block in table if block != NULL_BLOCK]

    def apply(self, change: dict[str, Any]) -> None:
        """Take over new values; of lists, what comes after the members that stay."""
        for name, value in change.items():
            old = getattr(self, name)  # an unknown name is an error
            if isinstance(old, list):
                keep, tail = value
                value = old[:keep] + tail
                if name in ("blocks", "more_blocks") and old and not value:
                    setattr(self, f"last_{name}", old)
            setattr(self, name, value)
