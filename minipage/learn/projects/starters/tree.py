"""A prefix index that finds more than whole blocks: a tree of tokens in place of a chain of hashes (SGLang's idea).

The score is the share of tokens, in per cent, that are found; an index that keeps more than `capacity` tokens scores 0.
This file knows whole blocks of 16, and forgets the oldest.
"""


class Index:
    def __init__(self, capacity):
        self.capacity, self.blocks = capacity, {}

    def find(self, tokens):
        """How many of these tokens, from the first on, are those of a text that was inserted."""
        length = 0
        while length + 16 <= len(tokens) and tuple(tokens[: length + 16]) in self.blocks:
            length += 16
            self.blocks[tuple(tokens[:length])] = self.blocks.pop(tuple(tokens[:length]))
        return length

    def insert(self, tokens):
        for stop in range(16, len(tokens) + 1, 16):
            self.blocks[tuple(tokens[:stop])] = True
        while self.num_tokens() > self.capacity:
            del self.blocks[next(iter(self.blocks))]

    def num_tokens(self):
        """How many tokens are kept. What two texts have in common counts once."""
        return 16 * len(self.blocks)
