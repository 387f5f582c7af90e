"""How a ragged batch is cut into pieces of work for blocks, when only the GPU knows the lengths.

Prompts are cut into tiles of queries.
A tile is up to `size` queries of one sequence. Sequence s starts at tile query_start_loc[s] // size + s, which leaves
at least as many tiles free for each sequence as it needs, so no table of tiles has to be made; tiles beyond the end of
their sequence have nothing to do.

    size 4      A: queries 0-4     B: query 5   C: queries 6-13
    tiles       0: 0-3  1: 4       2: 5         3: 6-9  4: 10-13  5: nothing

Decodes are cut into splits of their contexts: as many as each context takes, counted through the batch. A fixed number
of blocks shares them out, block b taking splits b, b + number of blocks, ... So a batch with one long context among
short ones does not launch thousands of blocks that find nothing to do, and a CUDA graph need not know the longest
context.
"""

from __future__ import annotations

from minipage.attention.cuda.compat import cuda, device_function, types

int32 = types.int32
ALL, WARP = 0xFFFFFFFF, 32


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


@device_function
def find_split(item, base, before, context_lens, query_start_loc, split_size, lane):
    """The item-th split of all decodes: (sequence, split of it, base, before), or sequence -1 if there are fewer.

    A warp counts together, 32 sequences at a time. Sequences before `base` have `before` splits: 0, 0 at first, and
    then what the search for an earlier item returned.
    """
    num_seqs = len(context_lens)
    while base < num_seqs:
        seq = base + lane
        own = int32(0)
        if seq < num_seqs and query_start_loc[seq + 1] - query_start_loc[seq] == 1:
            own = int32(max(1, (context_lens[seq] + split_size - 1) // split_size))
        end = own  # splits up to and with this lane's sequence
        for distance in (1, 2, 4, 8, 16):
            other = cuda.shfl_up_sync(ALL, end, distance)
            if lane >= distance:
                end = int32(end + other)
        last = before + cuda.shfl_sync(ALL, end, WARP - 1)
        if item < last:
            which = cuda.popc(cuda.ballot_sync(ALL, before + end <= item))  # sequences that are over before it
            return base + which, item - before - cuda.shfl_sync(ALL, int32(end - own), which), base, before
        base, before = base + WARP, last
    return -1, 0, base, before


def num_tiles(num_tokens: int, size: int, num_seqs: int) -> int:
    """At least as many as there are, whatever the batch."""
    return num_tokens // size + num_seqs
