"""Who gives way when the pool is dry?

The score is the share of computed tokens, in per cent, that were not computed again. This file takes the last in line.
"""


def choose(candidates):
    """One of the running groups, all of which come after the one that needs a block, or are that one.

    Each has `num_blocks`, `leader.num_computed_tokens`, `leader.num_prompt_tokens`, `max_num_tokens`, `arrival` and
    `num_preemptions`.
    """
    return candidates[-1]
