"""A tier below the pool in a trace (memory/offload.py): which blocks were saved there, and which came back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from minipage.trace.recording.wording import block_names

if TYPE_CHECKING:
    from minipage.engine.engine import Engine


class TierWatch:
    """Notes what travels between the pool of an engine and its tier, if it has one."""

    def __init__(self, llm: Engine) -> None:
        self.store = getattr(getattr(llm, "offloading", None), "store", None)
        self._saved: list[int] = []
        self._loaded: list[int] = []

    def replacements(self) -> list[tuple[object, str, Callable[..., Any]]]:
        """As the recorder's."""
        if self.store is None:
            return []
        pairs = (("save", self._saved), ("load", self._loaded))
        return [(self.store, name, noting(getattr(self.store, name), blocks)) for name, blocks in pairs]

    def take(self) -> dict[str, Any]:
        """What has travelled since the last time, as a part of a change."""
        facts = {name: list(blocks) for name, blocks in (("saved", self._saved), ("loaded", self._loaded)) if blocks}
        self._saved.clear()
        self._loaded.clear()
        return {"tier": facts} if facts else {}


def noting(method: Callable[..., Any], blocks: list[int]) -> Callable[..., Any]:
    def noted(slot: int, block_hash: bytes, block: int) -> Any:
        if is_done := method(slot, block_hash, block):
            blocks.append(block)
        return is_done

    return noted


def travels(change: dict[str, Any]) -> list[str]:
    """What went down and came up in this phase: sentences."""
    told, tier = [], change.get("tier", {})
    if saved := tier.get("saved"):
        are = "is" if len(saved) == 1 else "are"
        told.append(f"{block_names(saved).capitalize()} {are} evicted, and saved in the tier below.")
    if loaded := tier.get("loaded"):
        told.append(f"What was saved of this text comes back, into {block_names(loaded)}.")
    return told
