"""How many tokens should a step compute? Large steps finish prompts soon, small ones make nobody wait between tokens.

The score is the share of requests, in per cent, whose first token comes within half a second and whose others come
within 40 milliseconds of each other. This file always allows 2,048.
"""


def budget(num_decoding, num_waiting_tokens):
    """The most tokens of the next step: num_decoding texts get one each, and num_waiting_tokens of prompts are left."""
    return 2048
