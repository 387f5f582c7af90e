"""What the stories ask the model to go on with: beginnings of speeches, and a crowd of 64 requests."""

from __future__ import annotations

from minipage.simulate import draw_lengths
from minipage.trace.playing.story import Arrival

RICHARD = "KING RICHARD III:\nMy kingdom for a"
JULIET = "JULIET:\nO Romeo,"
ROMEO = "ROMEO:\nO, she doth teach the torches to"
FRIENDS = "First Citizen:\nBefore we proceed any further, hear me speak.\n"

SPEECH = """\
To be, or not to be, that is the question:
Whether 'tis nobler in the mind to suffer
The slings and arrows of outrageous fortune,
Or to take arms against a sea of troubles
And by opposing end them. To die, to sleep,
No more; and by a sleep to say we end
The heart-ache and the thousand natural shocks
That flesh is heir to: 'tis a consummation
Devoutly to be wish'd. To die, to sleep;
To sleep, perchance to dream: ay, there's the rub;
"""

# 64 requests of 50 to 2,000 tokens, prompt and answer together, each length half as likely as half of it. The shipped
# model has a context of 512 tokens, a quarter of 2,048, so everything is a quarter of that: the lengths, and a memory
# of 15,728 slots, which is what an A100 has left beside OPT-13B. A third of a request is its prompt, as in ShareGPT.
NUM_REQUESTS = 64
SHORTEST, LONGEST = 50, 2000
SCALE = 4
NUM_SLOTS = 15_728 // SCALE
ARRIVING = 8  # requests that come with a step


def crowd() -> tuple[Arrival, ...]:
    """Those 64 requests; each begins with another line of the speech."""
    lines = SPEECH.splitlines(keepends=True)
    arrivals = []
    for i, length in enumerate(draw_lengths("log-uniform", NUM_REQUESTS, SHORTEST, LONGEST, seed=0)):
        first = i % len(lines)
        prompt = "".join(lines[first:] + lines[:first])
        num_tokens = round(length / SCALE)
        num_prompt_tokens = round(num_tokens / 3)
        max_tokens = num_tokens - num_prompt_tokens
        arrivals.append(Arrival(i // ARRIVING, prompt, max_tokens, {"ignore_eos": True}, num_prompt_tokens))
    return tuple(arrivals)
