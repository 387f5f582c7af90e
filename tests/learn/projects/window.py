"""Every block whose last position lies before the window."""


def to_free(num_tokens, held, window, block_size):
    return [block for block in held if (block + 1) * block_size <= num_tokens - window + 1]
