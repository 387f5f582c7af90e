"""Lesson 16: steps ahead. Replace each `raise NotImplementedError(...)` by code of yours.

Speculative decoding in three parts: somebody guesses how a text goes on, one step says what is right of it, and the
slots of the rest go back. And overlap: a step is launched before the last one's token is known. Tokens are whole
numbers. What is handed in belongs to somebody else and stays as it is, except the table of 16.3, which is what changes.
"""

from __future__ import annotations

from typing import Protocol

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


class Device(Protocol):
    """Computes steps in the order in which they were launched. The host need not wait for one to launch the next."""

    def launch(self, position: int, token: int) -> int:
        """Start a step that computes this token at this position, and draws the next one; returns the step's number.

        ~number in place of a token is a placeholder: the device puts there what it draws in the step of that number.
        """

    def wait(self, step: int) -> int:
        """Wait until a step is done; returns the token that it has drawn."""


def generate_ahead(
    device: Device, prompt: list[int], max_tokens: int, stop_token: int
) -> list[int]:
    """Exercise 16.4: keep the device busy.

    Generate one text: it ends with `stop_token`, which belongs to it, or when it has `max_tokens` tokens. All of the
    prompt but its last token is computed already, so the first step computes that one, at position len(prompt) - 1.

    The device should never have to wait for the host: before you wait for a step, launch the one after it, with a
    placeholder for the token that you do not know yet; and none beyond that, because all that is launched is computed,
    wanted or not. There is none after it if the text ends by its length: you know that before. That it ends with the
    stop token you see too late, when the next step is launched already. Its token is surplus: nobody waits for it, and
    the text does not get it.

    Args:
        prompt: at least one token.
        max_tokens: at least 1.

    The prompt [5, 6], and a device that draws 7, 8 and then 0, the stop token; max_tokens is 9:
    launch(1, 6) is step 0, launch(2, ~0) is step 1, wait(0) is 7, launch(3, ~1) is step 2, wait(1) is 8,
    launch(4, ~2) is step 3, wait(2) is 0. The text is [7, 8, 0], and step 3 is surplus.
    """
    raise NotImplementedError(
        "Exercise 16.4: launch the first step; then again and again launch the next, and wait for the one before"
    )
