"""Sentences about drafts: which tokens are guessed and get slots ahead, how many were right, and what is given back.

A step with drafts (see `minipage/engine/speculation.py`) has slots for tokens that nobody may ever say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minipage.errors import count
from minipage.trace.recording.wording import block_names, printable

if TYPE_CHECKING:
    from minipage.trace.recording.events import Before
    from minipage.trace.recording.replay import State


def guess(label: str, drafts: Sequence[int], new_blocks: Sequence[int], after: State) -> str:
    """What a text guesses, and where there is room for it."""
    words = printable(after.decode(list(drafts)))
    where = "its slot is in the last block" if len(drafts) == 1 else "their slots are in the last block"
    if new_blocks:
        where = f"{block_names(new_blocks)} {'is' if len(new_blocks) == 1 else 'are'} taken"
    return f'{label} guesses {count(len(drafts), "token")} ahead, "{words}": {where}.'


def verdicts(before: Before, after: State) -> list[str]:
    """How many guesses were right, and what becomes of the others' slots."""
    told = []
    for label, drafts in after.drafts.items():
        text = after.texts[label]
        num_right = max(0, len(text.token_ids) - text.num_old_tokens - 1)
        if text.finish_reason:  # then all of its slots go
            told.append(f"{_how_many(label, num_right, len(drafts))}.")
            continue
        rejected = len(drafts) - num_right
        freed = [block for block in before.held[label] if block not in text.held_blocks]
        back = f"; {count(rejected, 'slot')} {'is' if rejected == 1 else 'are'} given back" if rejected else ""
        if freed:
            back += f", and {block_names(freed)} {'goes' if len(freed) == 1 else 'go'} back to the free queue"
        told.append(f"{_how_many(label, num_right, len(drafts))}{back}.")
    return told


def choices_with_guesses(after: State) -> list[tuple[str, str]]:
    """(label, what was sampled) of each text: of one with drafts all that was accepted, as one text."""
    words: list[tuple[str, str]] = []
    for label, token in after.chosen:
        if label in after.drafts and words and words[-1][0] == label:
            words[-1] = label, words[-1][1] + after.word(token)
        else:
            words.append((label, after.word(token)))
    return words


def _how_many(label: str, num_right: int, num_drafts: int) -> str:
    if num_drafts == 1:
        return f"{label}: its guess was {'right' if num_right else 'wrong'}"
    how_many = {0: "none", num_drafts: "all"}.get(num_right, str(num_right))
    return f"{label}: {how_many} of its {num_drafts} guesses {'was' if num_right < 2 else 'were'} right"
