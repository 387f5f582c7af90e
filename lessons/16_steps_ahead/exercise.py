"""Lesson 16: steps ahead. Replace each `raise NotImplementedError(...)` by code of yours.

Speculative decoding in three parts: somebody guesses how a text goes on, one step says what is right of it, and the
slots of the rest go back. Tokens are whole numbers. What is handed in belongs to somebody else and stays as it is,
except the table of 16.3, which is what changes.
"""

from __future__ import annotations

from minipage.errors import ConfigurationError  # noqa: F401 (you will raise it)
from minipage.memory import BlockTable


def propose(
    token_ids: list[int], num_tokens: int, shortest: int = 1, longest: int = 3
) -> list[int]:
    """Exercise 16.1: drafts from the text's own past.

    Take the last `longest` tokens of the text. Were they in it before? Then what followed them is the guess. If not, try
    with one token fewer, down to `shortest` (at least 1). If they were there several times, the last time before the end
    counts. The earlier place may overlap with the end itself, but it is not the end.

    Returns:
        At most `num_tokens` tokens (at least 1), fewer if the text ends before; an empty list if nothing is found.

    propose([1, 2, 3, 9, 1, 2, 3], num_tokens=2) is [9, 1]: 1 2 3 was there before.
    propose([5, 1, 7, 5, 2, 7, 5], num_tokens=2) is [2, 7]: 2 7 5 is new, but 7 5 was there.
    propose([4, 4, 4], num_tokens=2) is [4]: the last two were there before, one place earlier.
    """
    raise NotImplementedError(
        "Exercise 16.1: for each length from `longest` down, look from the end for what is like the end"
    )


def verify(drafts: list[int], said: list[int]) -> list[int]:
    """Exercise 16.2: the tokens that a text gets in a step with drafts.

    One step has computed the text's last token and all drafts after it, so there are logits after each of them:

        said[0]      what the model says after the text
        said[i]      what it says after the text and the first i drafts, right or wrong as they are

    A draft is right if it is what the model said in its place, and all drafts before it are right. The text gets the
    right drafts, and one token more: what the model says after them.

    Args:
        drafts: at least one token.
        said: one token more than there are drafts.

    verify(drafts=[7, 3, 5], said=[7, 3, 8, 2]) is [7, 3, 8]: two are right, and 8 stands where 5 was guessed.
    """
    raise NotImplementedError(
        "Exercise 16.2: said[i] counts only as long as all drafts before it are right"
    )


def truncate(table: BlockTable, num_tokens: int) -> None:
    """Exercise 16.3: give back the slots of rejected drafts.

    Keep the first `num_tokens` tokens of the table, and give back the blocks that hold none of them, the last one first.
    You need of the table: `num_tokens`, `blocks` (a list), `block_hashes`, and `pool`, with `pool.block_size` and
    `pool.free(block)`, which gives one reference back (other tables may have the same block).

    `block_hashes` is an empty list, or a root and then one hash for each of the first full blocks, as far as the prefix
    cache has published them. Hashes of blocks that are not full any more go, and the root stays.

    Raises:
        ConfigurationError: `num_tokens` is below 0, or the table has fewer tokens; then nothing has changed.

    Blocks of 4, and a table of 9 tokens in the blocks [7, 1, 3]: truncate(table, 8) gives back block 3.
    """
    raise NotImplementedError(
        "Exercise 16.3: check, count, give blocks back from the end, forget hashes"
    )
