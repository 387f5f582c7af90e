"""Whoever loses least: the fewest tokens computed, for the blocks that it gives."""


def choose(candidates):
    others = candidates[1:] or candidates
    return min(others, key=lambda group: (group.leader.num_computed_tokens, -group.arrival))
