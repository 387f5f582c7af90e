"""Sliding-window attention: a query looks at the last `window` tokens only, so older blocks can be given back.

The score is the memory saved, in per cent of what a full cache holds; freeing a block that is still read scores 0. This
file frees nothing.
"""


def to_free(num_tokens, held, window, block_size):
    """Which logical blocks are given back before the token at position `num_tokens` is computed.

    held: the logical blocks that the text still has, a sorted list; the query at `num_tokens` reads the positions from
    num_tokens - window + 1 to num_tokens.
    """
    return []
