"""Admission: let a prompt in as soon as it fits, or wait, because those who run will need room?

The score is tokens of answers a second. Whoever lets everybody in computes much of it again; whoever waits too long has
an idle machine. This file lets in what fits.
"""


def admit(needed, num_free, running, block_size):
    """Whether a waiting request starts now.

    needed: blocks that its prompt takes; num_free: blocks in the queue; running: groups, each with `max_num_tokens`,
    `num_blocks` and `leader.num_computed_tokens`. Nobody runs: it is let in, whatever is returned.
    """
    return needed <= num_free
