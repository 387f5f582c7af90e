"""Another eviction order for the prefix cache: which free block is the least likely to be wanted again?

The score is the share of prompt tokens, in per cent, that need not be computed. This file evicts what was freed longest
ago, as minipage does.
"""


class Eviction:
    def found(self, blocks):
        """A prompt has found these blocks, from its first on. (New ones are not told of.)"""

    def evicted(self, block):
        """What the block held is gone."""

    def choose(self, free, known):
        """The block to be taken next: one of `free` (in the order in which they were freed). `known`: those of them
        that hold something which could be found again.
        """
        return free[0]
