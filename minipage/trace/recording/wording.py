"""The words of sentences: lists of labels and blocks, numbers, and what may be left out where there is no room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MANY = 10  # labels in a row: nobody would read that many
ROUTINE = "K and V of", " arrives: ", " arrive: ", ": the new token", "full: others can find"  # parts of sentences


def printable(text: str) -> str:
    """`text` with every control character written out, as in "\\n"."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def is_routine(sentence: str) -> bool:
    """Whether it can go first where there is no room: what it says is seen, or does not change what is computed."""
    return any(part in sentence for part in ROUTINE)


def block_names(blocks: Sequence[int]) -> str:
    """[3] -> "block 3"; [3, 9] -> "blocks 3 and 9"; [3, 4, 5, 6] -> "blocks 3 to 6"; many -> how many."""
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    if len(blocks) > 3 and list(blocks) == list(range(blocks[0], blocks[0] + len(blocks))):
        return f"blocks {blocks[0]} to {blocks[-1]}"
    if len(blocks) > 8:
        return f"blocks {', '.join(map(str, blocks[:6]))} and {len(blocks) - 6} more"
    return f"blocks {join(map(str, blocks))}"


def decimals(number: float) -> str:
    """One digit of it, as 0.0000002 rather than 2e-07, which not everybody reads."""
    return f"{float(f'{number:.0e}'):.15f}".rstrip("0").rstrip(".")


def join(words: Iterable[str]) -> str:
    """A, B and C; of many, the first few and how many more."""
    *most, last = words
    if len(most) >= MANY:
        most, last = most[:3], f"{len(most) - 2} more"
    return f"{', '.join(most)} and {last}" if most else last
