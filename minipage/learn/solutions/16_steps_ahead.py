"""Lesson 16, solved. (minipage's own: `find` in engine/drafts.py, `num_right` in engine/speculation.py,
`BlockTable.truncate`, and `Overlap.step` in engine/overlap.py.)"""

from __future__ import annotations

from typing import Protocol

from minipage.errors import ConfigurationError
from minipage.memory import BlockTable, blocks_needed


def propose(token_ids: list[int], num_tokens: int, shortest: int = 1, longest: int = 3) -> list[int]:
    for length in range(min(longest, len(token_ids) - 1), shortest - 1, -1):
        end = token_ids[-length:]
        for stop in range(len(token_ids) - 1, length - 1, -1):
            if token_ids[stop - length : stop] == end:
                return token_ids[stop : stop + num_tokens]
    return []


def verify(drafts: list[int], said: list[int]) -> list[int]:
    num_right = 0
    while num_right < len(drafts) and drafts[num_right] == said[num_right]:
        num_right += 1
    return said[: num_right + 1]


def truncate(table: BlockTable, num_tokens: int) -> None:
    if not 0 <= num_tokens <= table.num_tokens:
        raise ConfigurationError(f"cannot keep {num_tokens} of {table.num_tokens} tokens.")
    table.num_tokens = num_tokens
    while len(table.blocks) > blocks_needed(num_tokens, table.pool.block_size):
        table.pool.free(table.blocks.pop())
    del table.block_hashes[1 + num_tokens // table.pool.block_size :]


class Device(Protocol):
    def launch(self, position: int, token: int) -> int: ...

    def wait(self, step: int) -> int: ...


def generate_ahead(device: Device, prompt: list[int], max_tokens: int, stop_token: int) -> list[int]:
    tokens: list[int] = []
    flying = device.launch(len(prompt) - 1, prompt[-1])
    while True:
        following = None
        if len(tokens) + 1 < max_tokens:
            following = device.launch(len(prompt) + len(tokens), ~flying)
        tokens.append(device.wait(flying))
        if tokens[-1] == stop_token or following is None:
            return tokens
        flying = following
