"""How a ragged batch is cut into tiles of queries, each the work of one block, when only the GPU knows the cuts.

A tile is up to `size` queries of one sequence. Sequence s starts at tile query_start_loc[s] // size + s, which leaves
at least as many tiles free for each sequence as it needs, so no table of tiles has to be made; tiles beyond the end of
their sequence have nothing to do.

    size 4      A: queries 0-4     B: query 5   C: queries 6-13
    tiles       0: 0-3  1: 4       2: 5         3: 6-9  4: 10-13  5: nothing
"""

from __future__ import annotations

from minipage.attention.cuda.compat import device_function


@device_function
def first_of_tile(tile, size, query_start_loc, num_seqs):
    """(sequence, number of the tile's first query in that sequence)."""
    low, high = 0, num_seqs - 1  # the last sequence that starts at this tile or before lies between
    while low < high:
        middle = (low + high + 1) // 2
        if query_start_loc[middle] // size + middle <= tile:
            low = middle
        else:
            high = middle - 1
    return low, (tile - query_start_loc[low] // size - low) * size


def num_tiles(num_tokens: int, size: int, num_seqs: int) -> int:
    """At least as many as there are, whatever the batch."""
    return num_tokens // size + num_seqs
