"""Lesson 16 in another style: everything found first, and slices."""

from itertools import takewhile

from minipage.errors import ConfigurationError


def propose(token_ids, num_tokens, shortest=1, longest=3):
    n = len(token_ids)
    for length in reversed(range(shortest, longest + 1)):
        places = [i for i in range(n - length) if token_ids[i : i + length] == token_ids[n - length :]]
        if places:
            return token_ids[places[-1] + length :][:num_tokens]
    return []


def verify(drafts, said):
    right = list(takewhile(lambda pair: pair[0] == pair[1], zip(drafts, said)))
    return [draft for draft, _ in right] + [said[len(right)]]


def truncate(table, num_tokens):
    if num_tokens < 0 or num_tokens > table.num_tokens:
        raise ConfigurationError("there are not that many tokens")
    size = table.pool.block_size
    keep = (num_tokens + size - 1) // size
    for block in reversed(table.blocks[keep:]):
        table.pool.free(block)
    table.blocks = table.blocks[:keep]
    table.block_hashes = table.block_hashes[: 1 + num_tokens // size]
    table.num_tokens = num_tokens


def generate_ahead(device, prompt, max_tokens, stop_token):
    text, steps = [], [device.launch(len(prompt) - 1, prompt[-1])]
    for place in range(1, max_tokens + 1):
        if place < max_tokens:
            steps.append(device.launch(len(prompt) - 1 + place, ~steps[-1]))
        token = device.wait(steps[place - 1])
        text.append(token)
        if token == stop_token:
            break
    return text
