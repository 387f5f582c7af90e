"""Prefixes that end inside a block (memory/partial_cache.py) in a trace: what was found, and what can be found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minipage.errors import count
from minipage.trace.recording.wording import block_names, join


def found(label: str, num_tokens: int, whole: list[int], block_size: int) -> str:
    """That a text has begun with what the prefix cache knew: `whole` blocks, and perhaps a part of the next one."""
    told = f"{label} finds its first {count(num_tokens, 'token')} in the prefix cache: "
    inside = num_tokens % block_size
    if not whole:
        return f"{told}inside a block, which is copied."
    told += f"{block_names(whole)} {'is' if len(whole) == 1 else 'are'} reused"
    return f"{told}, and {inside} tokens of a block that is copied." if inside else f"{told}."


def copied(source: int, to: list[int], writers: list[str]) -> str:
    """Of a block whose beginning is known: somebody goes on from there, in a copy."""
    go = "goes on" if len(writers) == 1 else "go on"
    return f"The beginning of block {source} is copied to {block_names(to)}, where {join(writers)} {go}."


def can_be_found(new: list[int], texts: Mapping[str, Any], block_size: int) -> list[str]:
    """Which blocks can be found from now on, whole or as far as they are written."""
    part_full = {
        block
        for text in texts.values()
        for i, block in enumerate(text.blocks)
        if text.computed < (i + 1) * block_size and block in new
    }
    told = []
    if whole := [block for block in new if block not in part_full]:
        full = "is full: others can find it" if len(whole) == 1 else "are full: others can find them"
        told.append(f"{block_names(whole).capitalize()} {full}.")
    if part_full:
        they_are = "it is" if len(part_full) == 1 else "they are"
        told.append(f"{block_names(sorted(part_full)).capitalize()} can be found as far as {they_are} written.")
    return told
