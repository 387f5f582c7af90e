"""The two examples of sharing in the PagedAttention paper (arXiv 2309.06180, section 4.4), block by block."""

from minipage.memory import BlockCopy, BlockPool, BlockTable


def pool_with_free_queue(num_blocks, block_size, first):
    """A pool that hands these blocks out first."""
    pool = BlockPool(num_blocks, block_size)
    pool.allocate_many(num_blocks)
    for block in [*first, *(block for block in range(num_blocks) if block not in first)]:
        pool.free(block)
    return pool


def test_figure_8_two_samples_share_the_prompt_and_the_first_writer_copies():
    """`Four score and seven | years ago our` in blocks 7 and 1; then `fathers` and `mothers` come next."""
    pool = pool_with_free_queue(num_blocks=9, block_size=4, first=[7, 1, 3])
    sample_1 = BlockTable(pool)
    sample_1.append(7)
    sample_2 = sample_1.fork()
    assert (list(sample_1), list(sample_2)) == ([7, 1], [7, 1])
    assert (pool.ref_count(7), pool.ref_count(1), pool.num_used) == (2, 2, 2), "the prompt is stored once"

    # Sample A1 writes `fathers` first. Block 1 has two references, so its contents are copied to block 3.
    assert sample_1.append(1) == [BlockCopy(source=1, destination=3)]
    assert list(sample_1) == [7, 3]
    assert (pool.ref_count(7), pool.ref_count(1), pool.ref_count(3)) == (2, 1, 1)

    # Then A2 writes `mothers`. Nobody else reads block 1 any more: it writes in place.
    assert sample_2.append(1) == []
    assert list(sample_2) == [7, 1]
    assert pool.num_used == 3, "3 physical blocks for 4 logical ones"
    assert sample_1.slot_mapping(7, 8) == [3 * 4 + 3] and sample_2.slot_mapping(7, 8) == [1 * 4 + 3]
    pool.check_integrity([sample_1, sample_2])


def grow_by_one_block(*beams):
    """Four steps of decoding, in which every beam gets a token."""
    for _ in range(4):
        for beam in beams:
            assert beam.append(1) == [], "these beams part at the end of a block, so nothing is ever copied"


def test_figure_9_beams_branch_and_die_and_9_physical_blocks_do_for_20_logical_ones():
    pool = BlockPool(num_blocks=13, block_size=4)
    beam_0 = BlockTable(pool)
    beam_0.append(4)  # the prompt, in block 0
    beam_3 = beam_0.fork()  # goes its own way from the second block on
    grow_by_one_block(beam_0, beam_3)
    grow_by_one_block(beam_0, beam_3)
    beam_1, beam_2 = beam_0.fork(), beam_0.fork()  # from the fourth block on
    grow_by_one_block(beam_0, beam_1, beam_2, beam_3)
    assert [list(beam) for beam in (beam_0, beam_1, beam_2, beam_3)] == [
        [0, 1, 3, 5],
        [0, 1, 3, 6],
        [0, 1, 3, 7],
        [0, 2, 4, 8],
    ]
    assert [pool.ref_count(block) for block in range(9)] == [4, 3, 1, 3, 1, 1, 1, 1, 1]

    # The four best candidates of the next step all come from beams 1 and 2. Beams 0 and 3 give their blocks back:
    # those that nobody else holds, 2, 4, 5 and 8, become free.
    new_beams = [beam_1, beam_1.fork(), beam_2, beam_2.fork()]
    free_before = set(pool.free_queue)
    beam_0.free()
    beam_3.free()
    assert set(pool.free_queue) - free_before == {2, 4, 5, 8}

    # Each of the new beams takes a block for its next tokens: 9 to 12, which have been free for the longest time.
    grow_by_one_block(*new_beams)
    assert [list(beam) for beam in new_beams] == [
        [0, 1, 3, 6, 9],
        [0, 1, 3, 6, 10],
        [0, 1, 3, 7, 11],
        [0, 1, 3, 7, 12],
    ]
    assert [pool.ref_count(block) for block in (0, 1, 3, 6, 7)] == [4, 4, 4, 2, 2]

    physical, logical = pool.num_used, sum(len(beam) for beam in new_beams)
    assert (physical, logical, f"{1 - physical / logical:.0%}") == (9, 20, "55%"), "what the paper prints: 55 % saved"
    pool.check_integrity(new_beams)
