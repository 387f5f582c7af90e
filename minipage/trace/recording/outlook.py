"""What a step is about to do, in sentences: told before it is done, so that the cause is seen first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minipage.errors import count
from minipage.trace.recording.wording import block_names, join

if TYPE_CHECKING:
    from minipage.trace.recording.replay import State


def what_is_ahead(change: dict[str, Any], after: State) -> list[str]:
    """What is about to be done, and why."""
    ahead = after.ahead
    told = []
    writers: dict[int, list[str]] = {}
    for want in ahead.wants:
        writers.setdefault(want.slot // after.block_size, []).append(want.label)
    for block, labels in writers.items():
        holders = [text.label for text in after.texts.values() if block in text.held_blocks]
        sharers = "they share" if set(holders) == set(labels) else f"{join(holders)} share"
        told.append(
            f"{join(labels)} {'wants' if len(labels) == 1 else 'want'} to write into block {block}, which {sharers}."
        )
    if ahead.gives_way:
        num_free = len(after.free_queue)
        free = "none is free" if not num_free else f"{num_free} {'is' if num_free == 1 else 'are'} free"
        needs = "needs a block" if len(ahead.needy) == 1 else "need a block each"
        who = f"{join(ahead.needy)} {needs}" if ahead.needy else "A block is needed"
        have = "has" if len(ahead.gives_way) == 1 else "have"
        told.append(f"{who}, and {free}: {join(ahead.gives_way)}, last in line, {have} to give way.")
    for label, blocks in ahead.finds:
        num_tokens = "" if after.windows else f"{len(blocks) * after.block_size} "
        loaded = change.get("tier", {}).get("loaded", ())
        here = [block for block in blocks if block not in loaded]
        places = [block_names(here)] if here else []
        places += ["the tier below"] * (len(here) < len(blocks))
        where = ", and in ".join(places)
        told.append(
            f"{label} begins with the same {num_tokens}tokens as a text before it: their K and V are in {where}."
        )
    if ahead.returns:
        swapped = {block for label in ahead.returns for block in after.texts[label].swap_blocks}
        told.append(
            f"{join(ahead.returns)} can come back: {count(len(swapped), 'block')} in swap space, and "
            f"{len(after.free_queue)} are free here."
        )
    return told
