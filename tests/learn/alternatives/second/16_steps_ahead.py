"""Lesson 16 in a third style: a dictionary of ends, a generator, and one token at a time."""

from minipage.errors import ConfigurationError


def propose(token_ids, num_tokens, shortest=1, longest=3):
    followed = {}
    for stop in range(1, len(token_ids)):
        for length in range(shortest, min(longest, stop) + 1):
            followed[tuple(token_ids[stop - length : stop])] = stop
    ends = (tuple(token_ids[len(token_ids) - k :]) for k in range(min(longest, len(token_ids)), shortest - 1, -1))
    start = next((followed[end] for end in ends if end in followed), len(token_ids))
    return [token_ids[i] for i in range(start, min(start + num_tokens, len(token_ids)))]


def verify(drafts, said):
    def kept():
        for i, token in enumerate(said):
            yield token
            if i == len(drafts) or drafts[i] != token:
                return

    return list(kept())


def truncate(table, num_tokens):
    if not (0 <= num_tokens and num_tokens <= table.num_tokens):
        raise ConfigurationError(num_tokens)
    while table.num_tokens > num_tokens:
        table.num_tokens -= 1
        logical, offset = divmod(table.num_tokens, table.pool.block_size)
        if len(table.block_hashes) > logical + 1:
            table.block_hashes.pop()
        if offset == 0:
            table.pool.free(table.blocks.pop(logical))


def generate_ahead(device, prompt, max_tokens, stop_token):
    def go_on(position, step):
        """What a step that is under way draws, and all after it."""
        is_last = position - len(prompt) + 1 == max_tokens - 1
        following = None if is_last else device.launch(position + 1, -1 - step)
        token = device.wait(step)
        if is_last or token == stop_token:
            return [token]
        return [token, *go_on(position + 1, following)]

    return go_on(len(prompt) - 1, device.launch(len(prompt) - 1, prompt[-1]))
