"""Sentences about blocks that several texts share: branches, forks, and who copies what before it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minipage.trace.recording.windows import held
from minipage.trace.recording.wording import block_names, join

if TYPE_CHECKING:
    from minipage.trace.recording.events import Before
    from minipage.trace.recording.replay import State


def branches(change: dict[str, Any], after: State) -> list[str]:
    told = []
    for new in change.get("new", ()):
        blocks = held(after.texts[new["label"]].blocks)
        told.append(f"{new['label']} branches off and shares {block_names(blocks)}.")
    return told


def forks(change: dict[str, Any], before: Before, after: State) -> list[str]:
    """Samples that waited for their prompt, and have its blocks now."""
    new = {each["label"] for each in change.get("new", ())}
    told: dict[tuple[int, ...], list[str]] = {}
    for text in after.texts.values():
        if text.label not in new and text.blocks and not before.tables.get(text.label):
            told.setdefault(tuple(text.blocks), []).append(text.label)
    return [
        f"{join(labels)} {'forks' if len(labels) == 1 else 'fork'} the block table: {block_names(blocks)} "
        f"{'is' if len(blocks) == 1 else 'are'} shared, and nothing is copied."
        for blocks, labels in told.items()
    ]


def copies(after: State) -> list[str]:
    told = []
    for name, verb in (("swap_out", "saved to swap space"), ("swap_in", "restored from swap space")):
        if pairs := after.moves.get(name):
            here = [pair.source if name == "swap_out" else pair.destination for pair in pairs]
            told.append(f"{block_names(here).capitalize()} {'is' if len(here) == 1 else 'are'} {verb}.")
    for source, to in _copied(after).items():
        writers = [text.label for text in after.texts.values() if not {*to}.isdisjoint(text.blocks)]
        who = f"{join(writers)} {'writes' if len(writers) == 1 else 'write'}" if writers else "Somebody writes"
        told.append(f"{who} into block {source}, which is shared: it is copied to {block_names(to)} first.")
    return told


def _copied(after: State) -> dict[int, list[int]]:
    """source -> where it is copied to."""
    copied: dict[int, list[int]] = {}
    for source, destination in after.moves.get("copies", ()):
        copied.setdefault(source, []).append(destination)
    return copied


def takes_for_copies(before: Before, after: State) -> list[str]:
    """Who got a block of its own to copy a shared one into, and who goes on writing into the shared one."""
    told = []
    for source, to in _copied(after).items():
        owners = {block: text.label for text in after.texts.values() for block in text.blocks}
        gets = [
            f"{owners.get(block, 'somebody')} {'takes' if i == 0 else ''} block {block}" for i, block in enumerate(to)
        ]
        kept_by = [label for label, _, _ in after.chunks if source in after.texts[label].blocks]
        stays = (
            f"; {join(kept_by)}, the last to write, may keep it"
            if len(kept_by) == 1 and kept_by[0] == owners.get(source)
            else ""
        )
        told.append(f"{join(get.replace('  ', ' ') for get in gets)}, to copy block {source} into{stays}.")
    return told
