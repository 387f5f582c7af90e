"""Goals to reach by choosing an engine's options well. Whether one is reached, the engine's own figures say.

A challenge brings its requests and the options to begin with, which do not reach it. Some options are part of it; the
others may be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from minipage.model.tokenizer import Tokenizer
from minipage.play.run import Ask, Figures

ROMEO = "ROMEO:\nO, she doth teach the torches to"
JULIET = "JULIET:\nO Romeo,"
RICHARD = "KING RICHARD III:\nMy kingdom for a"
FRIENDS = "MENENIUS:\nFriends, Romans, countrymen, lend me your ears;\n"


class Challenge(NamedTuple):
    name: str
    goal: str
    hint: str
    options: Mapping[str, Any]  # to begin with; these of them are part of it:
    locked: tuple[str, ...]
    asks: tuple[Ask, ...]
    judge: Callable[[Figures, int], str]  # (figures, number of requests) -> what is missing; empty: it is solved

    def missing(self, figures: Figures) -> str:
        """What is still to be done; empty if it is solved."""
        if figures.served < len(self.asks):
            return f"Served {figures.served} of {len(self.asks)} requests."
        return self.judge(figures, len(self.asks))


def asks(*prompts: str, max_tokens: int = 10, apart: int = 0, **params: Any) -> tuple[Ask, ...]:
    """Requests with seeds of their own, `apart` steps from one to the next; later ones are more urgent."""
    return tuple(
        Ask(str(i), prompt, {"max_tokens": max_tokens, "temperature": 0.8, "seed": i, "ignore_eos": True} | params,
            priority=-i, step=(i - 1) * apart)
        for i, prompt in enumerate(prompts, 1)
    )  # fmt: skip


def are_for(tokenizer: Tokenizer | None) -> bool:
    """Whether their texts have as many tokens as when they were thought out: with the shipped model they have."""
    texts = {ROMEO: 15, JULIET: 6, RICHARD: 10, FRIENDS: 22}
    return tokenizer is not None and all(len(tokenizer.encode(text)) == number for text, number in texts.items())


BASE = {
    "block_size": 4,
    "num_blocks": 24,
    "max_num_batched_tokens": 16,
    "max_num_seqs": 8,
    "policy": "fcfs",
    "preemption": "recompute",
    "enable_prefix_caching": False,
}


def nobody_gives_way(figures: Figures, num_asks: int) -> str:
    if figures.preemptions:
        return f"Somebody had to give way, {figures.preemptions}×; nobody should."
    return f"It took {figures.steps} steps." if figures.steps > 30 else ""


def high_hit_rate(figures: Figures, num_asks: int) -> str:
    return f"The hit rate is {figures.hit_rate:.0%}." if figures.hit_rate < 0.6 else ""


def little_waste(figures: Figures, num_asks: int) -> str:
    return f"{figures.waste:.0%} of the slots in use are empty, on average." if figures.waste > 0.1 else ""


def nothing_twice(figures: Figures, num_asks: int) -> str:
    if not figures.preemptions:
        return "Nobody had to give way. Somebody should, and still lose nothing."
    return f"{figures.recomputed} tokens were computed a second time." if figures.recomputed else ""


def quick(figures: Figures, num_asks: int) -> str:
    return f"It took {figures.steps} steps." if figures.steps > 14 else ""


def last_is_first(figures: Figures, num_asks: int) -> str:
    is_last = figures.first_done == str(num_asks)
    return "" if is_last else f"Request {figures.first_done} was done first; the last that came should be."


ALL = (
    Challenge(
        "nine-blocks",
        "Serve these six with nine blocks of four tokens, in 30 steps, and nobody has to give way.",
        "Whoever runs needs blocks later, too. How many may run at once?",
        BASE | {"num_blocks": 9},
        ("num_blocks", "block_size"),
        asks(JULIET, RICHARD[:18], "To be, or not", "O Romeo,", "Speak, speak", "My lord,", max_tokens=8),
        nobody_gives_way,
    ),
    Challenge(
        "hit-rate",
        "Reach a hit rate of 60 % in the prefix cache.",
        "Only full blocks can be found. What if they are smaller?",
        BASE | {"block_size": 16, "num_blocks": 32, "max_num_batched_tokens": 32},
        (),
        asks(*(FRIENDS + end for end in ("All:", "First:", "Brutus:", "Speak", "Peace")), max_tokens=4, apart=4),
        high_hit_rate,
    ),
    Challenge(
        "little-waste",
        "At most 10 % of the slots in blocks in use are empty, on average.",
        "Each text wastes half a block, on average. So how large is a block?",
        BASE | {"block_size": 16, "num_blocks": 32},
        (),
        asks(ROMEO, JULIET, RICHARD, max_tokens=12),
        little_waste,
    ),
    Challenge(
        "nothing-twice",
        "Somebody gives way, and yet nothing is computed twice.",
        "What is saved need not be computed again.",
        BASE | {"num_blocks": 14},
        ("num_blocks", "block_size", "max_num_seqs"),
        asks(ROMEO, JULIET, RICHARD, max_tokens=16),
        nothing_twice,
    ),
    Challenge(
        "in-a-hurry",
        "Serve these four in 14 steps.",
        "What a step computes is limited twice: in tokens, and in texts.",
        BASE | {"num_blocks": 40, "max_num_batched_tokens": 8, "max_num_seqs": 2},
        (),
        asks(ROMEO, JULIET, RICHARD, FRIENDS, max_tokens=12),
        quick,
    ),
    Challenge(
        "last-is-first",
        "The last that comes is the most urgent. Let it be done first.",
        "Who is served first is a policy.",
        BASE | {"num_blocks": 16, "max_num_seqs": 1},
        ("num_blocks", "block_size", "max_num_seqs"),
        asks("To be, or not", "My lord,", "O Romeo,", "Speak, speak", max_tokens=12),
        last_is_first,
    ),
)
CHALLENGES = {challenge.name: challenge for challenge in ALL}
